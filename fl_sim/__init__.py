"""Ground floor: settings, data, models, updates, quantizers, messages, engines and shared files.

Importing it switches off what Flower and Ray would send home; Flower reads this when imported.
What apps import is loaded when first used; ``__init__.pyi`` has the same names for editors.
"""

import os

from lazy_loader import attach

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "quantizers": ["parse_quantizer"],
        "registry": ["register"],
        "updates.local_update": ["LocalWork"],
    },
)
