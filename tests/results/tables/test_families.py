from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from results.scores.equal_points import COLUMNS
from results.tables.families import print_families

ENDS = ("", "_low", "_high", "_reached")


@pytest.fixture
def families(tmp_path):
    """The file of a study whose first point starts from drawn weights, an empty setting."""
    numbers = {name + end: 0.5 for name in COLUMNS for end in ENDS}
    facts = {"family": "uniform:bits", "points": 3, "established": True}
    rows = [{"initial_weights": start, **facts, **numbers} for start in ("", "start.safetensors")]
    pd.DataFrame(rows).to_csv(tmp_path / "families.csv", index=False)
    return tmp_path / "families.csv"


def test_an_empty_setting_is_shown_as_none(families):
    text = StringIO()
    print_families(families, Console(file=text, width=160))
    lines = [line.split() for line in text.getvalue().splitlines() if "uniform:bits" in line]
    assert [line[0] for line in lines] == ["none", "start.safetensors"]
