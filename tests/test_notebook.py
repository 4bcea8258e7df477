"""The notebook, run from top to bottom in a kernel of its own."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-walk.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_what_it_prints():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_and_shows_the_dataset_and_two_pictures(tmp_path):
    notebook = read()
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    kinds = [kind for out in shown for kind in out.get("data", {})]
    assert kinds.count("image/png") == 2
    assert "text/html" in kinds  # the dataset
    printed = "".join(out.get("text", "") for out in shown)
    assert "reached 177.0" in printed
