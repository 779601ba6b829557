"""Flower client app, the quantizing mod and local training.

What apps import is loaded when first used; ``__init__.pyi`` has the same names for editors.
"""

from lazy_loader import attach

import fl_sim  # noqa: F401 - before Flower is imported: switches its telemetry off

__getattr__, __dir__, __all__ = attach(
    __name__, submod_attrs={"inspection": ["Inspect"], "mods": ["Quantize"]}
)
