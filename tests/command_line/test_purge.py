import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings

ROOT = Path(__file__).parents[2]


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
    return call("purge", folder, *options, answer=answer)


def call(*words, answer=""):
    command = [sys.executable, ROOT / "run_simulation.py", *words]
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
        "purged.txt",
    }
    assert len(left) == 10
    assert (folder.parent / "other").is_dir()
    assert "nothing to delete" in purge(folder).stdout


def test_purge_follows_links_and_finds_what_a_killed_process_left(folder, tmp_path):
    disk = tmp_path / "disk"
    point = folder / "points" / "one"
    disk.mkdir()
    shutil.move(point / "observations", disk / "observations")
    (point / "observations").symlink_to(disk / "observations")
    other_run = tmp_path / "another" / "round-00001.safetensors"
    other_run.parent.mkdir()
    other_run.write_text("somebody else's")
    (disk / "trial").mkdir()
    (disk / "trial" / "round-00001.safetensors").write_text("private")
    (disk / "trial" / "notes.txt").write_text("somebody's own")
    (folder / "observations" / "moved").symlink_to(disk / "trial")
    (folder / "reconstructions" / "above").symlink_to(tmp_path)
    (folder / "reconstructions" / "gone").symlink_to(tmp_path / "gone")
    shutil.move(folder / "gallery.png", disk / "picture.png")
    (folder / "gallery.png").symlink_to(disk / "picture.png")
    for name in (".gallery.png.x7_a", ".report.html.x7_a", ".gallery.pdf.x7_a"):
        (point / name).write_text("private")
    before = {path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    done = purge(folder, "--yes")
    assert done.returncode == 0, done.stderr
    after = {path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    listed = [Path(line) for line in done.stdout.splitlines()]
    assert all(gone in listed or set(listed) & set(gone.parents) for gone in before - after)
    assert not [path for path in listed if path.exists() or path.is_symlink()]
    assert not [path for path in after if path.is_file() and path.read_text() == "private"]
    assert (disk / "trial" / "notes.txt").exists()
    assert other_run.exists()
    assert "nothing to delete" in purge(folder).stdout


def test_what_was_purged_says_when(folder, tmp_path):
    purge(folder, "--yes")
    tables = {path: path.read_bytes() for path in folder.rglob("*.csv")}
    today = date.today().isoformat()
    for command in ("report", "attack", "compare"):
        done = call(command, folder)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"purged on {today}" in done.stderr
    assert f"purged on {today}" in " ".join(call("status", folder).stdout.split())
    assert {path: path.read_bytes() for path in folder.rglob("*.csv")} == tables
    RunFolder(folder).create(Settings())  # as when it is trained again
    assert not RunFolder(folder).purged


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
