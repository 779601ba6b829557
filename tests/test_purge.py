import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim.runs import RunFolder
from fl_sim.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """A study of one point, as if it had been run, beside a folder of somebody else."""
    root = tmp_path / "study"
    RunFolder(root).create(Settings())
    for run in (root, root / "points" / "one"):
        for name in ("observations/t/round-00001.safetensors", "reconstructions/t/a/r"):
            (run / name).parent.mkdir(parents=True)
            (run / name).write_text("private")
        for name in ("gallery.png", "gallery.pdf", "report.html"):
            (run / name).write_text("private")
        for name in ("scores.csv", "results.csv", "curve.png", "history.csv"):
            (run / name).write_text("public")
    (tmp_path / "other").mkdir()
    (root / "reconstructions" / "link").symlink_to(tmp_path / "other")
    return root


def purge(folder, *options, answer=""):
    command = [sys.executable, ROOT / "run_simulation.py", "purge", folder, *options]
    return subprocess.run(command, input=answer, capture_output=True, text=True, check=False)


def kept(folder):
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock")]


def test_purge_deletes_what_is_private_and_keeps_the_tables(folder):
    done = purge(folder, "--yes")
    assert done.returncode == 0, done.stderr
    left = kept(folder)
    assert {path.name for path in left} == {
        "settings.toml",
        "scores.csv",
        "results.csv",
        "curve.png",
        "history.csv",
    }
    assert len(left) == 9
    assert (folder.parent / "other").is_dir()
    assert "nothing to delete" in purge(folder).stdout


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_purge_asks_first_and_deletes_nothing_without_a_yes(folder, answer):
    before = kept(folder)
    purge(folder, answer=answer)
    assert kept(folder) == before
    purge(folder, answer="y\n")
    assert len(kept(folder)) < len(before)


def test_purge_refuses_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "observations").mkdir()
    done = purge(tmp_path, "--yes")
    assert done.returncode == 2
    assert (tmp_path / "observations").is_dir()
