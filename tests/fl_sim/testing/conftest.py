import pytest

from fl_sim import registry


@pytest.fixture(autouse=True)
def parts_of_this_test(monkeypatch):
    """Forget what a test registers, at its end."""
    kept = {kind: dict(parts) for kind, parts in registry._registered.items()}
    monkeypatch.setattr(registry, "_registered", kept)
