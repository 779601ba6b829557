"""The command line, run in the process of a test."""

import sys

import pytest

import run_simulation


def command(*arguments: object) -> int:
    """Run the command line and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_simulation.py", *map(str, arguments)])
        try:
            run_simulation.main()
        except SystemExit as stop:
            return stop.code
        return 0
