"""Flower client app, the quantizing mod and local training."""

import fl_sim  # noqa: F401 - before Flower is imported: switches its telemetry off
