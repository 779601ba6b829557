"""The examples of docs/extending.md, used as a user would use them."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim import registry, testing
from fl_sim.registry import KINDS, load_plugins
from tests.commands import command_apart

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
TITLES = {
    "quantizer": "Quantizer",
    "attack": "Attack",
    "model": "Model",
    "dataset": "Data set",
    "partitioner": "Partitioner",
    "server": "Server plan",
    "metric": "Metric",
}
NAMES = {
    "quantizer": "int8",
    "attack": "public_mean",
    "model": "softmax",
    "dataset": "stripes",
    "partitioner": "linear",
    "server": "biased",
    "metric": "edges",
}
SMALL = [
    *("--quantizers", "none,int8", "--attacks", "public_mean,analytic", "--metrics", "edges"),
    *("--rounds", "2", "--clients", "3", "--observe", "1", "--workers", "1", "--quiet"),
]
OURS = [*SMALL, "--limit", "200", "--model", "mlp"]
ALL = [
    *(*SMALL, "--dataset", "stripes", "--partition", "linear", "--model", "softmax"),
    *("--server", "biased"),
]


def block(title):
    """Return the code of a section of the page."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))
    (code,) = re.findall(r"^```python\n(.*?)^```", sections[title], re.M | re.S)
    return code


def blocks():
    """Return the example of each kind of part."""
    return {kind: block(title) for kind, title in TITLES.items()}


def simulate_with(path, *arguments):
    """Run the command line in an interpreter of its own that finds packages of a folder."""
    command = [sys.executable, "run_simulation.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_there_is_a_short_example_of_each_kind():
    assert set(blocks()) == set(KINDS)
    for kind, source in blocks().items():
        assert f'@register("{kind}", "{NAMES[kind]}")' in source
        assert len(source.splitlines()) <= 40


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Register the examples for one test."""
    kept = {kind: dict(parts) for kind, parts in registry._registered.items()}
    monkeypatch.setattr(registry, "_registered", kept)
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = tmp_path / "my_parts.py"
    module.write_text("\n\n".join(blocks().values()))
    load_plugins([str(module)])
    yield
    del sys.modules["my_parts"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_example_passes_its_check(kind, parts):
    check = getattr(testing, "check_server_plan" if kind == "server" else f"check_{kind}")
    check(NAMES[kind])


def test_the_example_of_a_test_runs_and_can_fail(parts, monkeypatch):
    names = {}
    exec(block("Checks"), names)
    names["test_my_quantizer"]()
    monkeypatch.setattr("my_parts.Int8.body_size", lambda self, layout: 7)
    with pytest.raises(AssertionError, match="int8:levels=63: a body has"):
        names["test_my_quantizer"]()


def test_the_page_names_every_check():
    text = PAGE.read_text()
    assert [name for name in testing.__all__ if f"`{name}`" not in text] == []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One study with all seven parts in one file."""
    folder = tmp_path_factory.mktemp("seven")
    (folder / "my_parts.py").write_text("\n\n".join(blocks().values()))
    done = command_apart(*ALL, "--plugin", folder / "my_parts.py", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


@pytest.mark.slow
def test_a_study_of_seven_parts_of_a_user_ends_in_tables_and_pages(study):
    out, table = study
    results, scores = rows_of(out / "results.csv"), rows_of(out / "scores.csv")
    assert {row["quantizer"] for row in results} == {"none", "int8"}
    assert {row["server"] for row in results} == {"biased"}
    assert all(float(row["edges_median"]) >= 0 for row in results)
    attacks = {(row["quantizer"], row["attack"]) for row in scores}
    assert attacks == {(q, a) for q in ("none", "int8") for a in ("public_mean", "analytic")}
    assert all(float(row["edges"]) >= 0 for row in scores)
    sent = {row["quantizer"]: float(row["uplink_bytes_per_update"]) for row in results}
    assert 3.5 < sent["none"] / sent["int8"] < 4
    words = "biased (malicious: biases the answer)"
    assert words in table
    assert words in (out / "report.html").read_text()


def written(out):
    """Return when each trial, reconstruction and score was written, by what it is of."""
    training = {f"trial {path.stem}": path for path in (out / "training").glob("*.json")}
    made = {}
    for name in ("reconstructions", "scores"):
        for path in (out / name).rglob("round-*"):
            trial, attack, _ = path.relative_to(out / name).parts
            made[f"{name} {attack} of {trial}"] = path
    return {name: path.stat().st_mtime_ns for name, path in {**training, **made}.items()}


@pytest.mark.slow
def test_a_changed_part_makes_only_its_own_results_anew(tmp_path):
    files = {kind: tmp_path / f"my_{kind}.py" for kind in ("quantizer", "attack", "metric")}
    for kind, path in files.items():
        path.write_text(blocks()[kind])
    out = tmp_path / "run"
    command = [*OURS, "--plugin", ",".join(map(str, files.values())), "--out", out]

    def run_anew(kind, old, new):
        """Change the file of a part, and return what a further run made."""
        before = written(out)
        if kind:
            assert old in files[kind].read_text()
            files[kind].write_text(files[kind].read_text().replace(old, new))
        done = command_apart(*command)
        assert done.returncode == 0, done.stderr
        return {name for name, time in written(out).items() if before.get(name) != time}

    everything = run_anew(None, "", "")
    assert {name.split()[0] for name in everything} == {"trial", "reconstructions", "scores"}
    assert run_anew(None, "", "") == set()
    scores = {name for name in everything if name.startswith("scores")}
    assert run_anew("metric", "(across**2)", "2 * (across**2)") == scores
    changed = run_anew("attack", "torch.full((count,), self.label)", "torch.ones(count).long()")
    assert changed == {name for name in everything if " public-mean " in f"{name} "}
    changed = run_anew("quantizer", "step = update.vector", "step = 2 * update.vector")
    assert changed == {name for name in everything if "int8" in name}


@pytest.mark.slow
def test_an_installed_package_needs_no_plugin(tmp_path):
    sources = blocks()
    (tmp_path / "my_package.py").write_text("\n\n".join(sources.values()))
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("my_package\n")
    points = [
        f"[fl_sim.{kind}]\n{NAMES[kind]} = my_package:{part_of(sources[kind])}\n" for kind in KINDS
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    done = simulate_with(tmp_path, *ALL, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert {row["quantizer"] for row in rows_of(tmp_path / "run" / "results.csv")} == {
        *("none", "int8")
    }
    assert rows_of(tmp_path / "run" / "scores.csv")[0]["edges"]


def part_of(source):
    """Return the name of the class or function that an example registers."""
    return re.search(r"@register.*?^(?:class|def) (\w+)", source, re.M | re.S)[1]


REFUSED = {
    "a missing file": (["--plugin", "gone.py"], "plugin = .*gone.py': there is no file"),
    "a missing module": (["--plugin", "gone_parts"], "plugin = 'gone_parts': .*cannot be imported"),
    "a file that fails": (["--plugin", "fails.py"], "fails.py': .*ZeroDivisionError"),
    "a file with an error of syntax": (["--plugin", "wrong.py"], "wrong.py': .*SyntaxError"),
    "a quantizer": (["--quantizers", "int9"], "quantizers = 'int9': .*did you mean 'int8'"),
    "an attack": (["--attacks", "public_men"], "attacks = 'public_men': .*'public_mean'"),
    "a model": (["--model", "softmx"], "model = 'softmx': .*did you mean 'softmax'"),
    "a data set": (["--dataset", "stripe"], "dataset = 'stripe': .*did you mean 'stripes'"),
    "a partitioner": (["--partition", "liner"], "partition = 'liner': .*did you mean 'linear'"),
    "a server plan": (["--server", "based"], "server = 'based': .*did you mean 'biased'"),
    "a metric": (["--metrics", "edge"], "metrics = 'edge': .*did you mean 'edges'"),
    "a parameter": (["--quantizers", "int8:level=3"], "'level'.*did you mean 'levels'"),
    "a value": (["--model", "softmax:hidden=many"], "hidden=many is not a whole number"),
    "a value of an attack": (["--attacks", "public_mean:label=x"], "label=x is not a whole number"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_wrong_is_one_line_and_nothing_is_written(tmp_path, wrong):
    given, words = REFUSED[wrong]
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks().values()))
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "wrong.py").write_text("def\n")
    given = [str(tmp_path / one) if one.endswith(".py") else one for one in given]
    plugin = [] if "--plugin" in given else ["--plugin", tmp_path / "my_parts.py"]
    ours = list(OURS)
    if given[0] in ours:  # a list may be given once
        place = ours.index(given[0])
        del ours[place : place + 2]
    done = command_apart(*ours, *plugin, *given, "--out", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(words, line)
    assert not (tmp_path / "run").exists()
