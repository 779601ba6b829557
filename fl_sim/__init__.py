"""Ground floor: settings, data, models, updates, quantizers, messages, engines and shared files.

Importing it switches off what Flower and Ray would send home; Flower reads this when imported.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
