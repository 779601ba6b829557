"""ROC curves of made-up samples, whose answer is known."""

import pandas as pd
import pytest

from benchmarks.servers.roc import RATES, curves, figure
from clients.signs import LIMITS


def sample(value, variant, plan="", seed=0):
    """Return a sample of which one sign alone differs."""
    facts = {"model": "mlp", "plan": plan, "variant": variant, "commit": "abc"}
    where = {"seed": seed, "rate": 0.1, "round": 0}
    return facts | where | dict.fromkeys(LIMITS, 0.0) | {"surprise": value}


@pytest.fixture
def table():
    """Of 100 honest models, and planted ones that are above them all, like them, or below."""
    honest = [sample(k / 100, "honest", seed=k) for k in range(100)]
    planted = [sample(9.0, "published", "traps"), sample(-1.0, "noise=1", "traps")]
    alike = [sample(k / 100 + 0.005, "published", "imprint") for k in range(100)]
    return pd.DataFrame(curves(pd.DataFrame([*honest, *planted, *alike])))


def test_what_is_more_suspicious_than_all_is_found_and_what_is_less_is_not(table):
    rates = [f"{rate:g} %" for rate in RATES]
    found = table.set_index(["plan", "variant"])[rates].astype(float)
    assert (found.loc["traps", "published"] == 100).all()
    assert (found.loc["traps", "noise=1"][:-1] == 0).all()
    assert found.loc["traps", "noise=1"].iloc[-1] == 100
    assert found.loc["imprint", "published"].tolist() == pytest.approx(list(RATES), abs=1)
    assert set(table["honest models"]) == {100}


def test_each_plan_has_a_panel_and_each_variant_a_curve(table):
    panels = [axes for axes in figure(table).axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["traps", "imprint"]
    assert [len(axes.lines) - 1 for axes in panels] == [2, 1]  # and the line at one percent
