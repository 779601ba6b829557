"""Flower server app, strategies that gather observations, and the audit that attacks them."""

import fl_sim  # noqa: F401 - before Flower is imported: switches its telemetry off
