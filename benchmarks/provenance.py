"""Which code makes a measurement."""

import subprocess


def commit() -> str:
    """Return the commit of the checkout, with a ``+`` where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=7", "--dirty=+"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
