"""A name that is not known is answered alike everywhere: with the nearest that is, once."""

import pytest

from attacker.presets import build_attack
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import load_settings
from fl_sim.suggestions import one_of
from tests.commands import command


def test_the_nearest_name_is_suggested_and_what_resembles_none_gets_no_suggestion():
    assert one_of("sgn", ("sign", "none")) == "one of sign, none; did you mean 'sign'?"
    assert one_of("xyz", ("sign", "none")) == "one of sign, none"
    assert one_of("xyz", ()) == "it takes none"


@pytest.mark.parametrize(
    ("refuse", "near"),
    [
        (lambda: parse_quantizer("unifrom:bits=4"), "uniform"),
        (lambda: parse_quantizer("uniform:bit=4"), "bits"),
        (lambda: parse_quantizer("qsgd:levels=4,norm=l3"), "l2"),
        (lambda: build_attack("dgl"), "dlg"),
        (lambda: build_attack("cell:restart=3"), "restarts"),
        (lambda: build_attack("cell:objective=cosin"), "cosine"),
        (lambda: load_settings(None, {"model": "lenett"}), "lenet"),
        (lambda: load_settings(None, {"dataset": "digit"}), "digits"),
    ],
)
def test_every_floor_suggests_in_the_same_words(refuse, near):
    with pytest.raises(ValueError, match=rf"one of .*; did you mean '{near}'\?") as caught:
        refuse()
    assert str(caught.value).count("did you mean") == 1


@pytest.mark.parametrize("option", ["--format", "--log-to"])
def test_options_of_the_command_line_suggest_too(option, capsys):
    wrong, right = {"--format": ("parqet", "parquet"), "--log-to": ("mlfow", "mlflow")}[option]
    assert command("report", "no/such/run", option, wrong) == 2
    assert capsys.readouterr().err.strip().endswith(f"; did you mean {right!r}?")
