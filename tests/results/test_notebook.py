"""The example notebook runs as it stands, on any run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "results.ipynb"


@pytest.mark.slow
def test_the_notebook_shows_tables_and_pictures(graded_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(graded_run, target_is_directory=True)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    shown = {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert {cell for cell, kinds in shown.items() if "image/png" in kinds} == {
        "curve",
        "gallery",
        "training",
    }
    assert {cell for cell, kinds in shown.items() if "text/html" in kinds} == {
        "load",
        "paper",
        "attacks",
    }
    (load,) = [cell for cell in notebook.cells if cell.id == "load"]
    assert len(load.source.replace("\n\n", "\n").splitlines()) == 3


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
