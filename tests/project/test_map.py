"""The README's map names every package of the tree, and nothing that is not there."""

import re
from pathlib import Path

import pytest

from docs.render.tree import FLOORS, ROOT, map_of, packages, summary
from tests.project.test_floors import ALLOWED

LARGEST = 14
MOST = {"studies": 20}  # which are chosen by name, and are no modules
"""Files that a folder may hold, so that it can be taken in at a glance."""


def folders_of_the_map(text):
    """Return the paths that an indented list of folders stands for."""
    path, found = [], []
    for indent, name in re.findall(r"^( *)(\w+)/ ", text, re.MULTILINE):
        path = [*path[: len(indent) // 4], name]
        found.append("/".join(path))
    return found


def test_the_map_names_the_packages_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- map: begin -->")[1].split("<!-- map: end -->")[0]
    real = {
        folder.relative_to(ROOT).as_posix()
        for floor in ALLOWED
        for folder in (ROOT / floor).rglob("*")
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert set(folders_of_the_map(shown)) == real | set(ALLOWED)
    assert set(FLOORS) == set(ALLOWED)


def test_every_package_says_what_it_is_for_in_one_line():
    assert [path for path, text in packages().items() if len(text) > 100] == []


def test_a_package_without_a_docstring_is_refused(tmp_path):
    (tmp_path / "__init__.py").write_text("import os\n")
    with pytest.raises(ValueError, match="has no docstring"):
        summary(tmp_path / "__init__.py")


def test_rooms_are_indented_below_their_floor():
    text = map_of({"one": "First.", "one/room": "Second.", "two": "Third."})
    assert text.splitlines()[1:-1] == [
        "one/       First.",
        "    room/  Second.",
        "two/       Third.",
    ]
    assert folders_of_the_map(text) == ["one", "one/room", "two"]


@pytest.mark.parametrize("top", [*ALLOWED, "docs", "tests", "studies", "benchmarks", "examples"])
def test_no_folder_holds_too_many_files(top):
    crowded = {}
    for folder in [ROOT / top, *(p for p in (ROOT / top).rglob("*") if p.is_dir())]:
        files = [p for p in folder.iterdir() if p.is_file() and p.suffix != ".pyc"]
        if len(files) > MOST.get(folder.name, LARGEST):
            crowded[str(Path(folder).relative_to(ROOT))] = len(files)
    assert crowded == {}
