"""Measurements as lines of a CSV file, each with the code that made it."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping


def commit() -> str:
    """Return the commit of the checkout, with a ``+`` where files differ from it.

    Of a copy without git it is what the environment variable ``COMMIT`` says.
    """
    command = ["git", "describe", "--always", "--abbrev=7", "--dirty=+"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return done.stdout.strip()


def print_csv(rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows as they are made, as files below ``docs/results`` have them: commit last."""
    made_by = commit()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow([*row, "commit"])
        writer.writerow([*row.values(), made_by])
        sys.stdout.flush()
