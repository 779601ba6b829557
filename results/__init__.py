"""What a run leaves behind, measured and shown.

What notebooks and apps import stands in ``__init__.pyi`` and is loaded when first used.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
