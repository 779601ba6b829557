from .presets import build_attack as build_attack
from .presets import suite as suite
