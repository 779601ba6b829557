import io

import pytest
from rich.console import Console

from results.tables.terminal import print_results, terminal_table
from results.tables.verdicts import STAR, VERDICTS
from tests.results.tables.table_cases import NONE, SIGN, history, study, table


@pytest.mark.parametrize("width", [80, 120])
def test_the_printed_table_fits_the_terminal_and_names_doubts(width):
    scores = study(NONE, SIGN.assign(masked=True))
    console = Console(width=width, file=io.StringIO(), record=True)
    print_results(table(scores, history(none=[0.9, 0.8], sign=[0.8, 0.7])), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "not established*" in text
    assert "sign: not established, the attack failed to optimise on 100%" in text
    words = " ".join(text.split())
    assert f"leaks: {VERDICTS['leaks']} not established: {VERDICTS['not established']}" in words
    assert f"*: {STAR}" in words
    assert "nothing found:" not in words
    assert ("SSIM" in text) is (width == 120)
    assert "4,000" in text


def test_brackets_of_a_spec_are_printed_as_they_are():
    spec = "mixed:body.[a-z0-9].*=8,[/b]=4"
    scores = study(SIGN.assign(quantizer=spec, masked=True))
    console = Console(width=200, file=io.StringIO())
    print_results(table(scores, history(**{spec: [0.8, 0.7]}), spec), console)
    assert console.file.getvalue().count(spec) == 2  # in the table and in its doubt


def test_missing_figures_are_dashes():
    made = table(study(NONE), history(none=[0.9]), "none", "sign")
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(terminal_table(made, 120))
    row = next(line for line in console.export_text().splitlines() if "sign" in line)
    assert row.count("–") >= 6
    assert "nan" not in row
