"""Attacks that reconstruct private batches from observations, and from nothing else.

What others import is loaded when first used; ``__init__.pyi`` has the same names for editors.
"""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__, submod_attrs={"presets": ["build_attack", "suite"]}
)
