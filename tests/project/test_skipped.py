"""A run of the tests says in one line what it left out, and why."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
import pytest

@pytest.mark.skipif(True, reason="needs a second moon")
@pytest.mark.parametrize("number", [1, 2])
def test_marked(number): ...

def test_found_out_on_the_way():
    pytest.skip("no tide today")

def test_run(): ...
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_what_was_skipped_is_told_in_one_line(tmp_path, workers):
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(SOURCE)
    command = [sys.executable, "-m", "pytest", "-q", *workers, "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    assert told == ["skipped: 2 (needs a second moon); 1 (no tide today)"]
