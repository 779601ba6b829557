"""The command line, run in the process of a test or in one of its own."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import pytest

import run_simulation
from fl_sim.engines.fork_server import fork_server

ROOT = Path(__file__).parents[1]


def command(*arguments: object) -> int:
    """Run the command line and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_simulation.py", *map(str, arguments)])
        try:
            run_simulation.main()
        except SystemExit as stop:
            return stop.code
        return 0


def command_apart(*arguments: object) -> CompletedProcess[str]:
    """Run the command line as a program, which imports plug-ins as they are now.

    It is a fork of a process that has imported the project but no plug-in: that saves the seconds
    that a new interpreter needs for PyTorch.
    """
    with TemporaryDirectory() as folder:
        program = fork_server(["run_simulation"]).Process(
            target=_program, args=([str(one) for one in arguments], folder)
        )
        program.start()
        program.join()
        out, errors = ((Path(folder) / name).read_text() for name in ("out", "err"))
    return CompletedProcess(arguments, program.exitcode, out, errors)


def _program(arguments: list[str], folder: str) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ["COLUMNS"] = "200"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    status = command(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
