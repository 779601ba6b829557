"""What the documents say of code and measurements is what code and CSV files say."""

import subprocess
import sys

import pandas as pd
import pytest

from docs.render import tables
from docs.render.__main__ import ROOT, main, sections, stale
from docs.render.sections import replace_section


def test_no_document_is_stale():
    assert [str(path.relative_to(ROOT)) for path in stale()] == [], "run python -m docs.render"


def test_a_page_that_differs_from_its_csv_is_named_and_fails(tmp_path, capsys, monkeypatch):
    for section in sections():
        path = tmp_path / section.page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / section.page).read_text())
    page = tmp_path / "docs" / "findings.md"
    page.write_text(page.read_text().replace("| `sign`", "| `sing`"))
    assert list(stale(tmp_path)) == [page]
    monkeypatch.setattr("docs.render.__main__.stale", lambda: {ROOT / "docs/findings.md": ""})
    assert main(["--check"]) == 1
    assert "docs/findings.md is stale: run python -m docs.render" in capsys.readouterr().err


def test_the_command_writes_every_section():
    command = [sys.executable, "-m", "docs.render", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_only_what_stands_between_the_markers_is_replaced():
    text = "before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter"
    expected = "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nafter"
    assert replace_section(text, "a", "new") == expected
    with pytest.raises(ValueError, match="no section 'b'"):
        replace_section(text, "b", "new")


@pytest.mark.parametrize("facts", tables.index(), ids=lambda facts: facts["name"])
def test_every_table_of_measurements_says_how_it_was_made(facts):
    frame = tables.read(tables.RESULTS / facts["csv"])
    frame = tables.rows(frame, facts.get("where", {}))
    assert len(frame) > 0
    assert facts["command"]
    commits = [facts["commit"]] if "commit" in facts else list(frame["commit"])
    for commit in {one for named in commits for one in named.split(", ")}:
        assert len(commit) >= 7
        assert set(commit) <= set("0123456789abcdef")


def test_a_table_of_another_commit_is_named_and_says_so_on_its_page(tmp_path, monkeypatch, capsys):
    index = """
[[table]]
name = "default"
csv = "default.csv"
command = "make run"

[[table]]
name = "same"
csv = "default.csv"
page = "docs/a.md"
command = "make run"

[[table]]
name = "older"
csv = "older.csv"
page = "docs/a.md"
command = "unknown"
"""
    (tmp_path / "index.toml").write_text(index)
    (tmp_path / "default.csv").write_text("quantizer,commit\nnone,abcdef0\n")
    (tmp_path / "older.csv").write_text("quantizer,commit,code,command\nnone,1234567,ff,make old\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.of_other_commits() == ["older"]
    same, older = (section.content for section in tables.sections())
    assert "(the README's table" not in same
    assert "`make old` at commit 1234567 (the README's table: abcdef0).*" in older
    assert "ff" not in older
    monkeypatch.setattr("docs.render.__main__.stale", dict)
    assert main(["--check"]) == 0
    assert "older" in capsys.readouterr().err


def test_every_csv_file_is_in_the_index():
    files = {path.relative_to(tables.RESULTS).as_posix() for path in tables.RESULTS.rglob("*.csv")}
    assert files == {facts["csv"] for facts in tables.index()}


def test_a_table_shows_the_chosen_rows_with_intervals_and_separators(tmp_path, monkeypatch):
    frame = pd.DataFrame(
        {
            "set": ["a", "b"],
            "quantizer": ["sign", "none"],
            "bytes": ["63314", "7"],
            "MSE": ["0.02", "1"],
            "MSE_low": ["0.01", ""],
            "MSE_high": ["0.03", ""],
            "commit": ["abcdef0", "1234567"],
        }
    )
    frame.to_csv(tmp_path / "some.csv", index=False)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "reference", lambda: ["abcdef0"])
    facts = {"csv": "some.csv", "page": "docs/x/y.md", "command": "make it", "where": {"set": "a"}}
    shown = tables.table(facts).splitlines()
    cells = [cell.strip() for cell in shown[2].strip("|").split("|")]
    assert cells == ["`sign`", "63,314", "0.02 [0.01, 0.03]"]
    assert shown[-1] == "*[some.csv](../results/some.csv): `make it` at commit abcdef0.*"
    other = tables.table(facts | {"where": {"set": "b"}}).splitlines()[2]
    assert other.strip("|").split("|")[-1].strip() == "1"
    both = {"where": {"set": ["a", "b"]}, "columns": ["set", "quantizer"]}
    rows = tables.table(facts | both).splitlines()[2:4]
    assert [row.strip("|").split("|")[0].strip() for row in rows] == ["a", "b"]
