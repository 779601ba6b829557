from .inspection import Inspect as Inspect
from .mods import Quantize as Quantize
