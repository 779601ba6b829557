"""Scores, tables, figures and pages of what a run wrote.

The names for notebooks and apps are in ``__init__.pyi`` and are loaded at first use.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
