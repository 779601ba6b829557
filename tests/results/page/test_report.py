import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fl_sim.study.settings import SettingsError, dump_settings
from results.figures.pictures import affordable_victims, batch_strips, png, victim_cards
from results.page.report import compare, sentence, write_report
from results.reading.run_reader import RunReader
from results.reading.study_reader import run_gallery
from results.scores.rows import CLIENT, VICTIM, random_batches, random_victims
from results.tables.verdicts import STAR, VERDICTS
from tests.results.conftest import graded, small_settings, write_run


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(graded_run: Path) -> str:
    write_report(RunReader(graded_run), graded_run / "report.html")
    return (graded_run / "report.html").read_text()


def test_the_page_refers_to_nothing_outside_itself(page):
    for tag, attributes in Page(page).tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 8_000_000


def test_the_page_has_verdicts_threat_model_setting_and_provenance(page):
    text = Page(page).text
    assert "Threat model" in text
    assert "lenet with" in text
    assert "4 clients (iid)" in text
    assert "Reaches 60.5 % test accuracy" in text
    assert "Not established: the attack failed to optimise on 100% of the victims" in text
    assert "run_simulation.py reproduce" in text
    assert "quantizers = [" in text


def partly_failed(
    images: torch.Tensor, labels: torch.Tensor, quantizer: str, attack: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The truth, but noise for the victims of `sign` whose label is 0, 1 or 2."""
    return graded(images, labels, quantizer if labels[0] < 3 else "none", attack)


def test_a_leak_has_a_star_on_page_and_gallery_where_the_attack_failed_on_some(tmp_path):
    changes = {"quantizers": ["none", "sign"], "training": {"rounds": 2, "batch_size": 1}}
    run = RunReader(write_run(tmp_path / "run", small_settings(**changes), partly_failed).root)
    assert run.results["verdict"].tolist() == ["leaks", "leaks"]
    write_report(run, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r'data-verdict="leaks">(.*?)<', html) == ["leaks", "leaks*"]
    assert f"<dt>*</dt><dd>{STAR}</dd>" in html
    figure = run_gallery(run)
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert {"none\nleaks", "sign\nleaks*"} <= set(labels)


def test_the_page_defines_the_verdicts_it_shows(page):
    shown = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    words = ("leaks", "not established")
    assert "Chance alone identifies 2.4% of the victims and knows" in page
    assert shown == [*((word, VERDICTS[word]) for word in words), ("*", STAR)]


def test_every_quantizer_has_a_row_and_every_chart_a_name(page):
    parsed = Page(page)
    assert sum(tag == "tr" for tag, _ in parsed.tags) == 1 + 3
    charts = [a for tag, a in parsed.tags if a.get("class") == "chart"]
    assert len(charts) == 6
    assert all(chart.get("aria-label") for chart in charts)


def test_the_csv_of_the_page_is_that_of_the_run(page, graded_run):
    from urllib.parse import unquote

    href = next(a["href"] for tag, a in Page(page).tags if a.get("id") == "download")
    downloaded = unquote(href.split(",", 1)[1])
    results = RunReader(graded_run).results
    assert pd.read_csv(io.StringIO(downloaded))["quantizer"].tolist() == list(results["quantizer"])
    assert downloaded.splitlines()[0] == ",".join(results.columns)


def test_data_cannot_end_the_script_element(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert block is not None
    assert "<" not in block[1]


def test_pictures_are_exact_pngs():
    image = torch.linspace(0, 1, 64).view(1, 8, 8)
    with Image.open(io.BytesIO(base64.b64decode(png(image)))) as decoded:
        expected = (image[0] * 255).round().numpy()
        assert np.array_equal(np.asarray(decoded), expected)
    assert png(torch.full((3, 8, 8), torch.nan)) == ""


def test_cards_pair_truth_and_guesses(graded_run):
    run = RunReader(graded_run)
    victims = random_victims(run.scores, 5)
    cards = victim_cards(run, victims, tuple("0123456789"))
    assert list(cards) == ["none", "uniform:bits=4", "sign"]
    for of_quantizer in cards.values():
        assert [card["order"] for card in of_quantizer] == [0, 1, 2, 3, 4]
        assert all(len(card["guesses"]) == 2 for card in of_quantizer)
        assert all(sum(g["strongest"] for g in card["guesses"]) == 1 for card in of_quantizer)
    for card in cards["none"]:
        assert {guess["png"] for guess in card["guesses"]} == {card["truth"]}
        assert {guess["label"] for guess in card["guesses"]} == {card["label"]}
    assert all(guess["short"] for card in cards["sign"] for guess in card["guesses"])


def shuffled(
    images: torch.Tensor, labels: torch.Tensor, quantizer: str, attack: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The truth in another order."""
    del quantizer, attack
    return images.flip(0), labels.flip(0)


def test_a_batch_is_shown_whole_and_each_image_above_the_one_that_is_assigned_to_it(tmp_path):
    changes = {"training": {"rounds": 1, "batch_size": 6}, "audit": {"attacks": ["cell"]}}
    root = write_run(tmp_path / "run", small_settings(**changes), shuffled).root
    run = RunReader(root)
    batches = random_batches(run.scores, 8)
    assert batches["image"].tolist() == list(range(6))
    assert len(batches[CLIENT].drop_duplicates()) == 1
    assert len(random_batches(run.scores, 12)) == 12
    for strip in batch_strips(run, batches).values():
        assert [one["truth"] for one in strip] == [one["png"] for one in strip]
        assert len({one["truth"] for one in strip}) == 6
    figure = run_gallery(run)
    assert figure is not None
    drawn = [image.get_array().tolist() for image in figure.axes[0].images]
    assert drawn[:6] == drawn[6:12] == drawn[12:18]
    write_report(run, tmp_path / "report.html")
    block = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)
    assert block is not None
    strips = json.loads(block[1])["strips"]
    assert [one["title"][-7:] for one in strips["sign"]] == [f"image {k}" for k in range(6)]


def test_batches_of_one_image_are_random_victims_and_need_no_strip(tmp_path):
    changes = {"training": {"rounds": 1, "batch_size": 1}, "audit": {"attacks": ["cell"]}}
    run = RunReader(write_run(tmp_path / "run", small_settings(**changes), graded).root)
    drawn = random_victims(run.scores, 5).sort_values(VICTIM, ignore_index=True)
    assert random_batches(run.scores, 5).equals(drawn)
    assert batch_strips(run, drawn) == {}


def test_a_small_budget_shows_fewer_victims(graded_run):
    run = RunReader(graded_run)
    assert affordable_victims(run, 10_000) < affordable_victims(run, 100_000)
    assert affordable_victims(run, 0) == 4


ROW = {
    "quantizer": "sign",
    "test_accuracy_mean": 0.88,
    "uplink_bytes_per_update": 1000.0,
    "mse_median": 0.1,
    "success_rate": 0.25,
    "identified_rate": 0.5,
    "label_accuracy": 1.0,
    "identified_chance": 0.0069,
    "label_chance": 0.1,
    "psnr_median": 10.0,
    "psnr_best_known": 11.0,
    "established": True,
    "doubt": "",
}
REFERENCE = pd.Series(ROW | {"quantizer": "none", "test_accuracy_mean": 0.9}).replace(1000, 32000)


def test_sentences_say_cost_saving_and_leak():
    assert sentence(pd.Series(ROW), REFERENCE) == (
        "Reaches 88.0 % test accuracy (-2.0 points) and sends 1,000 bytes an update (97% fewer). "
        "The strongest attack recovers 25% of the victims, identifies 50% (chance 0.69%) and "
        "recovers 100% of the labels (chance 10%); the median PSNR is 10.0 dB "
        "(best known 11.0)."
    )
    assert "points" not in sentence(REFERENCE, REFERENCE)
    assert "points" not in sentence(pd.Series(ROW), None)
    heavier = pd.Series(ROW | {"uplink_bytes_per_update": 64000.0})
    assert "(100% more)" in sentence(heavier, REFERENCE)
    doubted = pd.Series(ROW | {"established": False, "doubt": "why"})
    assert sentence(doubted, REFERENCE).endswith(
        "Not established: why. A better attack may find more."
    )
    assert sentence(pd.Series(ROW | {"mse_median": np.nan}), None).endswith("Not attacked yet.")
    assert sentence(pd.Series(ROW | {"test_accuracy_mean": np.nan}), None) == "Not trained yet."


def test_families_have_a_table_and_each_can_be_switched_on_and_off(tmp_path, page):
    assert 'id="families-title"' not in page  # none of this run
    settings = small_settings(seeds=[0], quantizers=["none", "uniform:bits=4", "uniform:bits=8"])
    folder = write_run(tmp_path / "run", settings, graded).root
    write_report(RunReader(folder), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    table = "family test % at equal privacy MSE at equal accuracy bytes at equal both uniform:bits"
    assert table in Page(html).text
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    curve = data["figures"]["curve"]["data"]
    families = [trace["name"] for trace in curve if trace.get("meta") == "family"]
    assert families == ["uniform:bits", "other quantizers"]
    assert 'id="families"' in html


def test_several_runs_share_a_page(graded_run, tmp_path):
    other = write_run(
        tmp_path / "other", small_settings(seeds=[0], quantizers=["none", "sign"]), graded
    )
    compare([graded_run, other.root], tmp_path / "compare.html")
    text = Page((tmp_path / "compare.html").read_text()).text
    for name in ("graded / sign", "other / sign", "Setting of graded", "Setting of other"):
        assert name in text
    assert "other / uniform" not in text


def test_runs_of_one_name_are_told_apart_by_folder(graded_run, tmp_path):
    settings = small_settings(seeds=[0], quantizers=["none"])
    twin = write_run(tmp_path / "b" / "graded", settings, graded).root
    compare([graded_run, twin], tmp_path / "compare.html")
    assert f"{twin} / none" in Page((tmp_path / "compare.html").read_text()).text


def test_comparing_what_is_no_run_is_refused(graded_run, tmp_path):
    with pytest.raises(SettingsError, match="not the folder of a run"):
        compare([graded_run, tmp_path], tmp_path / "compare.html")
    assert not (tmp_path / "compare.html").exists()


def test_a_run_that_has_only_settings_has_a_page(tmp_path):
    (tmp_path / "settings.toml").write_text(dump_settings(small_settings()))
    write_report(RunReader(tmp_path), tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert text.count("Not trained yet.") == 3


def test_names_are_escaped(tmp_path):
    root = tmp_path / "<script>alert(1)<"
    root.mkdir()
    (root / "settings.toml").write_text(dump_settings(small_settings()))
    write_report(RunReader(root), root / "report.html")
    assert "<script>alert(1)" not in (root / "report.html").read_text()
