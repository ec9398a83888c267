"""Notebooks and scripts of ``examples``, and the Python of documents, run as a user would run them, on synthetic data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from tests.conftest import Patch

from groundglass.data.phantoms import write_series
from groundglass.imaging.phantom import make_phantom, write_png
from groundglass.imaging.read import read_slices

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A healthy and an ill series of four slices."""
    return write_series(tmp_path_factory.mktemp("series") / "made", [0, 0.8], 4, size=192)


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_scripts_make_tables_and_masks_and_share_a_classifier(series: list[Path], tmp_path: Path) -> None:
    out = run("predict_folder.py", series[1], tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == len(out.splitlines()) == 4
    assert "ok" in set(table.status)
    planes = [each.hounsfield for each in read_slices(series[1])]
    voxels = np.stack(planes, axis=2).transpose(1, 0, 2).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 10.0, 1.0])).to_filename(tmp_path / "ct.nii.gz")
    out = run("masks_of_volume.py", tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz")
    mask = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    assert (mask.shape, set(np.unique(mask))) == ((192, 192, 4), {0, 1, 2})
    assert "lung opacity" in out
    lines = run("many_processes.py", *series).splitlines()
    assert [line.split()[0] for line in lines] == [str(path) for path in series]
    healthy, ill = (float(line.split()[-1]) for line in lines)
    assert healthy < ill
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in source] == []


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_documents_runs(name: str, series: list[Path], tmp_path: Path, monkeypatch: Patch) -> None:
    blocks = re.findall("```python\n(.*?)```", (EXAMPLES.parent / name).read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(series[1], "series")
    write_png(make_phantom(np.random.default_rng(1), 0.4, 0.5, size=192), Path("slice.png"))
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)  # noqa: S102 - our own
    assert names["prediction"].status.value == "ok"
    assert name == "README.md" or names["answer"].counts.ok == 4


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    command = tmp_path / "bin" / "groundglass"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom groundglass.cli.main import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    assert len(list(EXAMPLES.glob("*.ipynb"))) == 2
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    assert not any(cell.source.startswith("!") for cell in notebook.cells), "a command that fails ends it"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "text/html" in {kind for output in outputs for kind in output.get("data", ())}
    assert "error:" not in "".join(str(output.get("text", "")) for output in outputs)
