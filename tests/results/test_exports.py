import pandas as pd
import pytest

from results.exports import FORMATS, export
from results.reading.run_reader import RunReader
from results.tables.verdicts import STAR, VERDICTS, chance


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_written_in_every_format(graded_run, kind):
    paths = export(graded_run, [kind])
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in ("curve", "curve_by_round", "gallery")
    ]
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert all(path.read_bytes().startswith(start) for path in paths)


def test_parquet_keeps_every_figure(graded_run):
    results, scores = export(graded_run, ["parquet"])
    run = RunReader(graded_run)
    pd.testing.assert_frame_equal(pd.read_parquet(results), run.results)
    assert len(pd.read_parquet(scores)) == len(run.scores)


def test_tables_for_papers(graded_run):
    markdown, latex, *curve = export(graded_run, ["md", "tex"])
    assert [path.name for path in curve] == ["curve.tex", "curve.pdf"]
    figure = curve[0].read_text()
    assert r"\includegraphics[width=\columnwidth]{curve.pdf}" in figure
    assert r"Chance alone identifies 2.4\% of" in figure
    lines = markdown.read_text().splitlines()
    assert lines[0].startswith("| quantizer | server | test % | points to none | bytes |")
    assert lines[2].startswith("| none | curious | 60.5 [60.0, 61.0] | – | 3")
    assert lines[4].startswith("| sign | curious | 55.5 [55.0, 56.0] | -5.0 [-5.0, -5.0] | ")
    assert lines[4].endswith("| not established* |")
    assert {line.count("|") for line in lines[:5]} == {14}
    assert lines[5:] == [
        "",
        f"- leaks: {VERDICTS['leaks']}.",
        f"- not established: {VERDICTS['not established']}.",
        f"- \\*: {STAR}.",
        "- \\* `sign`: not established, the attack failed to optimise on 100% of the victims.",
        "",
        f"Server plan: curious (honest but curious). {chance(RunReader(graded_run).results)}",
    ]
    text = latex.read_text()
    assert text.count(r"\\") == 1 + 3
    assert r"& identified \% &" in text
    assert "uniform:bits=4 & curious & 60.5 [60.0, 61.0] & +0.0 [+0.0, +0.0]" in text
    assert "not established*" in text
    assert rf"\emph{{leaks}}: {VERDICTS['leaks']}. \emph{{not" in text
    assert rf"\emph{{*}}: {STAR}. Server plan: curious (honest but curious). Chance" in text
    assert r"Chance alone identifies 2.4\% of" in text


def test_an_unknown_format_writes_nothing(graded_run, tmp_path):
    with pytest.raises(KeyError, match="gif"):
        export(tmp_path, ["gif"])
    assert set(FORMATS) == {"png", "svg", "pdf", "parquet", "md", "tex"}
    assert list(tmp_path.iterdir()) == []
