"""Flower server app, strategies that gather observations, and the audit that attacks them.

What apps import stands in ``__init__.pyi`` and is loaded when first used.
"""

from lazy_loader import attach_stub

import fl_sim  # noqa: F401 - before Flower is imported: switches its telemetry off

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
