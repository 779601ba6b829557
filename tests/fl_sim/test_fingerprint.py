import shutil

import pytest

from fl_sim import fingerprint
from fl_sim.fingerprint import code_version, modules_of

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
        fingerprint._digest.cache_clear()
        code_version.cache_clear()
        return code_version(("pkg.main",), ("numpy",))

    yield of
    fingerprint._digest.cache_clear()
    code_version.cache_clear()


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


def test_a_module_that_is_not_there_has_no_fingerprint():
    with pytest.raises(ModuleNotFoundError, match="results.scorings"):
        code_version(("results.scorings",), ("numpy",))


def test_neither_the_command_line_nor_the_report_can_void_a_training():
    training = modules_of(("clients.app", "server.training"))
    assert {"fl_sim.quantizers.lattice", "clients.mods", "server.strategy"} <= training
    assert not [name for name in training if name.startswith(("results", "attacker"))]
    assert "attacker.optimizers" in modules_of(("server.audit",))


def test_the_order_of_sets_differs_from_process_to_process_but_not_the_fingerprint():
    import subprocess
    import sys

    command = "from fl_sim.fingerprint import *; print(code_version(('results.gates',), ()))"
    found = {
        subprocess.run(
            [shutil.which("env"), f"PYTHONHASHSEED={seed}", sys.executable, "-c", command],
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1
