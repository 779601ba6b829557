import shutil
from pathlib import Path

import pytest

from fl_sim.floors import ATTACK_CODE, SCORING_CODE, TRAINING_CODE
from fl_sim.storage import fingerprint
from fl_sim.storage.fingerprint import code_version, modules_of

SOURCE = '''
from pkg import other

NAMES = {"a", "b", "c"}

def double(x):
    """Say."""
    return x + x if x not in {"d", "e"} else None
'''


@pytest.fixture
def version(tmp_path, monkeypatch):
    """Fingerprint a package of two modules, of which the text of one is given."""
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "other.py").touch()
    (tmp_path / "pkg" / "unused.py").touch()

    def of(source, name="main"):
        (tmp_path / "pkg" / f"{name}.py").write_text(source)
        forget()
        return code_version(("pkg.main",))

    yield of
    forget()


_CACHED = ("_digest", "_imports", "_lazy", "_folder", "_lies_with_packages", "_versions")


def forget():
    """Look at the files again, as a new process does."""
    for known in (*_CACHED, "code_version"):
        getattr(fingerprint, known).cache_clear()


def test_comments_docstrings_and_layout_do_not_count(version):
    before = version(SOURCE)
    assert version(SOURCE.replace("Say.", "Say it again.")) == before
    assert version("# new\n\n\n" + SOURCE.replace("x + x", "(x  +  x)")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("x + x", "x * x"), ('"c"', '"f"'), ('"e"', '"g"'), ("double", "twice"), ("None", "0")],
)
def test_what_the_code_does_counts(version, old, new):
    assert version(SOURCE) != version(SOURCE.replace(old, new))


def test_what_is_imported_counts_and_nothing_else(version):
    before = version(SOURCE)
    version("x = 1\n", "unused")
    assert version(SOURCE) == before
    assert version("x = 1\n", "other") != before


def test_what_a_package_loads_when_first_used_counts_for_who_uses_it(version, tmp_path):
    lazy = 'attach(__name__, submod_attrs={"unused": ["thing"]})'
    (tmp_path / "pkg" / "__init__.py").write_text(lazy)
    direct, through_package = version("import pkg.unused"), version("from pkg import thing")
    assert version("from pkg import other") not in {direct, through_package}
    version("thing = 1\n", "unused")
    assert version("from pkg import thing") != through_package


def test_a_module_that_is_not_there_has_no_fingerprint():
    with pytest.raises(ModuleNotFoundError, match="results.scorings"):
        code_version(("results.scorings",))


OUTSIDE = {
    "models/__init__.py": "from .nets import net\n",
    "models/nets.py": "import layers, shapes\nfrom . import sizes\nnet = 1\n",
    "models/sizes.py": "size = 1\n",
    "models/unused.py": "unused = 1\n",
    "layers.py": "layer = 1\n",
    "shapes/__init__.py": "from .deep.form import form\n",
    "shapes/deep/__init__.py": "",
    "shapes/deep/form.py": "from .. import round\nform = 1\n",
    "shapes/round.py": "round = 1\n",
}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path, of code that nobody installed."""
    root = tmp_path / "outside"
    for name, source in OUTSIDE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    monkeypatch.syspath_prepend(root)
    return root


@pytest.mark.parametrize("changed", OUTSIDE)
def test_code_outside_the_project_counts_if_it_is_imported(version, outside, changed):
    before = version("import models\n")
    (outside / changed).write_text(OUTSIDE[changed] + "more = 2\n")
    assert (version("import models\n") != before) == (changed != "models/unused.py")


@pytest.mark.parametrize(
    "source", ["import parts", "from parts.one import two", "import os, parts"]
)
def test_of_what_is_installed_the_version_counts(version, tmp_path, monkeypatch, source):
    site = tmp_path / "site"
    (site / "parts").mkdir(parents=True)
    (site / "parts" / "__init__.py").write_text("a = 1\n")
    facts = site / "parts-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: parts\nVersion: 1.0\n")
    (facts / "top_level.txt").write_text("parts\n")
    monkeypatch.syspath_prepend(site)
    fingerprint._packages.cache_clear()
    before = version(source)
    (site / "parts" / "__init__.py").write_text("a = 2\n")
    assert version(source) == before
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: parts\nVersion: 1.1\n")
    assert version(source) != before


def test_code_that_is_installed_from_where_it_is_written_counts(version, tmp_path, monkeypatch):
    """An editable install: its version says nothing of what changes."""
    facts = tmp_path / "site" / "mine-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "top_level.txt").write_text("mine\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "home")
    fingerprint._packages.cache_clear()
    before = version("import mine")
    (tmp_path / "home" / "mine.py").write_text("a = 2\n")
    assert version("import mine") != before


@pytest.mark.parametrize(
    ("entries", "packages"),
    [
        (TRAINING_CODE, {"torch", "numpy", "flwr", "flwr_datasets"}),
        (ATTACK_CODE, {"torch", "numpy", "scipy"}),
        (SCORING_CODE, {"torch", "numpy", "scipy", "skimage"}),
    ],
)
def test_packages_that_make_results_count_but_none_is_hashed(entries, packages):
    modules = modules_of(entries)
    imported = {name.partition(".")[0] for m in modules for name in fingerprint._imports(m)}
    assert packages <= {name for name in imported if fingerprint._versions(name)}
    assert {name.partition(".")[0] for name in modules} <= {
        "attacker",
        "clients",
        "fl_sim",
        "results",
        "server",
    }


def test_neither_the_command_line_nor_the_report_can_void_a_training():
    training = modules_of(("clients.app", "server.training"))
    assert {"fl_sim.quantizers.lattice", "clients.mods", "server.strategies.averaging"} <= training
    assert not [name for name in training if name.startswith(("results", "attacker"))]
    assert "attacker.matching.optimizers" in modules_of(("server.auditing.jobs",))


def test_the_order_of_sets_differs_from_process_to_process_but_not_the_fingerprint():
    import subprocess
    import sys

    command = (
        "from fl_sim.storage.fingerprint import *; print(code_version(('results.scores.gates',)))"
    )
    found = {
        subprocess.run(
            [shutil.which("env"), f"PYTHONHASHSEED={seed}", sys.executable, "-c", command],
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1


@pytest.mark.parametrize("imported", [True, False])
def test_what_an_installed_package_brings_along_is_not_code_of_ours(monkeypatch, imported):
    import sys
    from sysconfig import get_path

    import psutil

    if not imported:
        monkeypatch.delitem(sys.modules, "psutil")
    caches = (fingerprint._folder, fingerprint._versions, fingerprint._imports)
    monkeypatch.setattr(fingerprint, "_BESIDE", set())
    before = modules_of(("server.training",))
    bundled = Path(get_path("purelib")) / "ray" / "thirdparty_files"  # Ray puts it on the path
    assert (bundled / "psutil").is_dir()
    assert psutil.__name__ not in before
    monkeypatch.syspath_prepend(str(bundled))
    for cached in caches:
        cached.cache_clear()
    assert modules_of(("server.training",)) == before
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
