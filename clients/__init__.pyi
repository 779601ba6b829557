from .mods import Quantize as Quantize
