from .quantizers import parse_quantizer as parse_quantizer
from .registry import register as register
from .updates.local_update import LocalWork as LocalWork
