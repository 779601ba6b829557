from .quantizers import parse_quantizer as parse_quantizer
from .updates.local_update import LocalWork as LocalWork
