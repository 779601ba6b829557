"""The help: quick, as it imports no PyTorch, with choices, defaults and an example that parses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import run_simulation
from fl_sim import choices, registry
from fl_sim.study.settings import Settings, load_settings, option_fields
from tests.commands import command

GROUP = get_command(run_simulation.cli)
COMMANDS = sorted(GROUP.commands)


def help_of(capsys, *arguments):
    assert command(*arguments, "--help") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["attack", "--help"], ["--version"]], ids=str)
def test_the_help_imports_neither_pytorch_nor_flower(arguments):
    code = "import sys, run_simulation\nrun_simulation.main()\n"
    code += "print(sorted({'torch', 'flwr', 'ray', 'pandas'} & sys.modules.keys()))"
    process = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(process, cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["", *COMMANDS], ids=lambda name: name or "study")
def test_every_command_ends_with_an_example_that_parses(name, capsys):
    shown = help_of(capsys, *filter(None, [name]))
    assert "\\[" not in shown
    *_, head, example = shown.rstrip().splitlines()
    assert head.strip() == "Example:"
    program, *arguments = example.split()
    assert program == "run_simulation.py"
    if name:
        assert arguments.pop(0) == name
    (GROUP.commands[name] if name else GROUP).make_context(program, arguments)


def test_no_line_of_the_list_of_commands_is_cut(capsys):
    assert "..." not in help_of(capsys).partition("Commands:")[2]


def test_settings_are_shown_with_their_choices_or_kind_and_their_defaults(capsys):
    words = " ".join(help_of(capsys).split())
    kinds = ["engine local|ray", "rounds INTEGER", "seeds INTEGER,...", "limit INTEGER"]
    kinds += ["alpha NUMBER", "fixed-batch true|false", "data-dir PATH", "observe NAME,..."]
    assert [kind for kind in kinds if f" --{kind} " not in words] == []
    for name in ("rounds", "dataset", "timeout", "server_optimizer", "victims"):
        after = words.partition(f" --{name.replace('_', '-')} ")[2]
        default = option_fields()[name][1].default
        assert after.partition("[default: ")[2].startswith(f"{default}]")


def test_the_defaults_shown_are_those_of_the_default_study():
    assert load_settings(run_simulation.STUDIES / "default.toml", {}) == Settings()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("model", (*choices.MODEL_NAMES, "imprint", "loki", "torchvision")),
        ("dataset", (*choices.DATASET_NAMES, "hub")),
        ("partitioner", choices.PARTITION_NAMES),
        ("server", choices.SERVER_NAMES),
    ],
)
def test_the_parts_named_in_the_help_are_those_there_are(kind, named):
    assert set(named) <= set(registry.names(kind))
    own = {name for name in registry.names(kind) if registry.module_of(kind, name)[:7] == "fl_sim."}
    assert own == set(named)


def test_the_shell_is_told_how_a_word_may_go_on():
    code = "import sys, run_simulation\nsys.argv[0] = 'fl-sim'\nrun_simulation.main()\n"
    asked = {"_FL_SIM_COMPLETE": "complete_bash", "COMP_WORDS": "fl-sim re", "COMP_CWORD": "1"}
    process = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    environment = os.environ | asked
    done = subprocess.run(
        process, cwd=root, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["reproduce", "report"]
