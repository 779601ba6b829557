import math
import sys
from types import SimpleNamespace

import pytest

from fl_sim.privacy import gaussian_epsilon


def test_epsilon_of_the_gaussian_mechanism_lies_below_the_classic_bound():
    pytest.importorskip("opacus", reason="the accountant is optional")
    once = gaussian_epsilon(noise=2, rounds=1, sample_rate=1.0, delta=1e-5)
    # Renyi divergence alpha / (2 z^2), minimised over alpha, with the classic conversion above it.
    classic = 1 / 8 + math.sqrt(2 * math.log(1e5)) / 2
    assert 0.7 * classic < once < classic
    assert gaussian_epsilon(2, 100, 1.0, 1e-5) > once
    assert gaussian_epsilon(2, 100, 0.1, 1e-5) < gaussian_epsilon(2, 100, 1.0, 1e-5)


def test_the_accountant_is_asked_for_noise_rate_and_rounds(monkeypatch):
    class Accountant:
        def get_epsilon(self, delta):
            return (self.history, delta) == ([(2.0, 0.5, 100)], 1e-5)

    monkeypatch.setitem(sys.modules, "opacus", SimpleNamespace())
    accountants = SimpleNamespace(RDPAccountant=Accountant)
    monkeypatch.setitem(sys.modules, "opacus.accountants", accountants)
    assert gaussian_epsilon(noise=2.0, rounds=100, sample_rate=0.5, delta=1e-5) == 1.0


def test_a_missing_accountant_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ImportError, match="needs the package opacus"):
        gaussian_epsilon(1.0, 1, 1.0, 1e-5)
