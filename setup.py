"""The packages of a wheel: the floors, and a copy of them below one name that no app has.

The ``server.py`` or ``results/`` of an app hides our package of that name, never the copy.
"""

import re
from pathlib import Path
from shutil import copytree, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FLOORS = ("attacker", "clients", "fl_sim", "results", "server")
COPY = "fl_quantization_privacy"
IMPORTS = re.compile(
    rf"^([ >.]*)(from|import) (?=({'|'.join(FLOORS)})\b[\w.]*( import| as|  #|$))", re.MULTILINE
)


class BuildPy(build_py):
    """Copies the floors below `COPY`, where they import each other by their names there."""

    def run(self) -> None:
        """Build the packages and the copy; an editable install has no copy."""
        if self.editable_mode:
            super().run()
            return
        rmtree(self.build_lib, ignore_errors=True)  # else files of an earlier build are installed
        super().run()
        root, copy = Path(self.build_lib), Path(self.build_lib, COPY)
        for floor in FLOORS:
            copytree(root / floor, copy / floor)
        for path in copy.rglob("*.py"):
            path.write_text(IMPORTS.sub(rf"\1\2 {COPY}.", path.read_text("utf-8")), "utf-8")
        (copy / "py.typed").touch()
        (copy / "__init__.py").write_text('"""All packages of this project; see each of them."""\n')


setup(
    cmdclass={"build_py": BuildPy},
    packages=[
        *find_packages(include=[pattern for floor in FLOORS for pattern in (floor, f"{floor}.*")]),
        "fl_sim.studies",
        "results.page.templates",
    ],
)
