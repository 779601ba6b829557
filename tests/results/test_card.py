import copy
import io
import json
import shutil
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fl_sim.storage.fingerprint import fingerprint
from fl_sim.study.settings import SettingsError, dump_settings
from results.card import FIGURES, make_card, read_card, write_card
from results.card_comparison import compare_cards, print_comparison
from results.reading.study_reader import StudyReader
from tests.commands import command

PROTOCOL = Path(__file__).parents[2] / "studies" / "protocol_v1.toml"


@pytest.fixture(scope="module")
def card(graded_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "card.json"
    write_card(StudyReader(graded_run), path)
    return read_card(path)


@pytest.fixture
def files(card, tmp_path):
    """Write two cards, the second changed by a function; return their paths."""

    def write(change=lambda other: None):
        other = copy.deepcopy(card)
        change(other)
        paths = [tmp_path / "one.json", tmp_path / "other.json"]
        for path, content in zip(paths, (card, other), strict=True):
            path.write_text(json.dumps(content))
        return paths

    return write


def test_the_card_holds_the_figures_of_the_results(card, graded_run):
    results = StudyReader(graded_run).results
    assert [row["quantizer"] for row in card["rows"]] == list(results["quantizer"])
    assert [row["verdict"] for row in card["rows"]] == list(results["verdict"])
    for row, (_, expected) in zip(card["rows"], results.iterrows(), strict=True):
        assert list(row["figures"]) == list(FIGURES)
        for name, figure in row["figures"].items():
            assert figure["value"] == pytest.approx(expected[name], rel=1e-5)
            low = expected.get(f"{name}_low")
            assert figure["low"] == (None if pd.isna(low) else pytest.approx(low, rel=1e-5))


def test_the_same_run_gives_the_same_text_and_no_places(graded_run, tmp_path):
    for name in ("a", "b"):
        write_card(StudyReader(graded_run), tmp_path / name)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    assert "NaN" not in text
    assert str(graded_run.parent) not in text


def test_the_digest_is_of_what_figures_depend_on(graded_run, tmp_path):
    def digest(**changes):
        root = shutil.copytree(graded_run, tmp_path / "_".join(changes))
        reader = StudyReader(root)
        settings = reader.study.points[0].settings
        parts = {
            name: getattr(settings, name).model_copy(update=value)
            if isinstance(value, dict)
            else value
            for name, value in changes.items()
        }
        (root / "settings.toml").write_text(dump_settings(settings.model_copy(update=parts)))
        return make_card(StudyReader(root))["digest"]

    own = make_card(StudyReader(graded_run))["digest"]
    assert digest(engine={"workers": 3}) == own
    assert digest(audit={"victims": 3}) != own


def test_equal_cards_agree(files, capsys):
    assert command("compare", *files()) == 0
    assert "0 figures differ, 27 agree" in capsys.readouterr().out  # 3 rows of 8 and a verdict


def test_intervals_that_are_apart_differ(files, capsys):
    def shift(other):
        other["rows"][1]["figures"]["psnr_median"] = {"value": 90, "low": 89, "high": 91}
        other["rows"][2]["figures"]["psnr_median"]["value"] += 1e-3  # within its interval
        other["rows"][0]["verdict"] = "nothing found"
        other["versions"]["torch"] = "3.0"

    paths = files(shift)
    assert command("compare", *paths, "--json") == 1
    made = json.loads(capsys.readouterr().out)
    apart = [(one["row"], one["figure"]) for one in made["differences"] if one["differs"]]
    assert apart == [("none", "verdict"), ("uniform:bits=4", "psnr_median")]
    assert (made["status"], made["versions"]["torch"][1]) == (1, "3.0")
    assert command("compare", *paths) == 1
    assert "90 [89, 91]" in capsys.readouterr().out


def test_other_settings_or_images_make_cards_incomparable(files, capsys):
    def change(other):
        other["settings"]["training"]["batch_size"] = 7
        other["images"] = ["0"]

    assert command("compare", *files(change), "--json") == 3
    assert list(json.loads(capsys.readouterr().out)["settings"]) == [
        "training.batch_size",
        "images",
    ]


def test_a_row_of_one_card_alone_differs_and_leaves_the_others_comparable(card):
    other = copy.deepcopy(card)
    other["settings"]["quantizers"].append("fp16")
    other["rows"].append({**other["rows"][0], "quantizer": "fp16"})
    made = compare_cards(card, other)
    assert made.status == 1
    assert [(one.row, one.one) for one in made.differences if one.differs] == [("fp16", "missing")]
    shown = io.StringIO()
    print_comparison(made, ("a", "b"), Console(file=shown, width=80))
    assert "fp16" in shown.getvalue()


def test_axes_name_the_rows(card):
    first, second = ({**card["rows"][0], "alpha": alpha} for alpha in (0.1, 1.0))
    one = card | {"axes": ["alpha"], "rows": [first, second]}
    made = compare_cards(one, one | {"rows": [first]})
    assert [d.row for d in made.differences if d.differs] == ["alpha=1.0, none"]


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', '{"format": 1, "rows": [{}]}'])
def test_what_is_no_card_is_refused_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"card\.json"):
        read_card(path)
    assert command("compare", path, path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cards_and_folders_are_not_mixed(files, tmp_path, capsys):
    assert command("compare", files()[0], tmp_path) == 2
    assert command("compare", files()[0]) == 2
    assert command("compare", tmp_path, "--json") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_protocol_is_frozen():
    """A protocol with other settings is another one: give it a new name."""
    tree = tomllib.loads(PROTOCOL.read_text())
    del tree["smoke"]
    assert fingerprint(tree) == "cb0705f9cce453ed"
