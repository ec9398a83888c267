"""The wheel, and the clone, installed by the tools that users have, by the lines of README; without torch."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from groundglass import __version__
from groundglass.imaging.phantom import make_phantom, write_png

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PIP = re.compile(r"pip install '?\.(?:\[\w+\]'|(?=\s))")
OFFLINE = re.compile(r"dns error|[Nn]ame resolution|failed to lookup|[Cc]onnection|timed out|unreachable")


def run(*command: object, **environment: object) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    clean |= {name: str(value) for name, value in environment.items()}
    words = list(map(str, command))
    return subprocess.run(words, capture_output=True, text=True, check=False, env=clean, timeout=900, cwd=ROOT)


def install(*command: object, **environment: object) -> str:
    """What a tool that installs said to standard error."""
    done = run(sys.executable, "-m", *command, **environment)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="builds the wheel")
    folder = tmp_path_factory.mktemp("dist")
    assert run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder).returncode == 0
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        bundle = "groundglass/bundles/default/"
        expected = {f"{bundle}{name}" for name in json.loads(archive.read(f"{bundle}bundle.json"))["files"]}
        expected |= {"groundglass/recipes/pretraining/c2l.yaml", "groundglass/py.typed"}
        assert expected <= set(archive.namelist())
    return built


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "what"), [("pipx", "clone"), ("uv", "wheel")])
def test_what_is_installed_predicts(tool: str, what: str, wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    source, python = wheel if what == "wheel" else ROOT, sys.executable
    verb = ("install",) if tool == "pipx" else ("tool", "install")
    places = {"PIPX_HOME": tmp_path / "home", "UV_TOOL_DIR": tmp_path / "home"}
    places |= {"PIPX_BIN_DIR": tmp_path / "bin", "UV_TOOL_BIN_DIR": tmp_path / "bin"}
    install(tool, *verb, "--python", python, source, **places)
    groundglass = tmp_path / "bin" / "groundglass"
    assert run(groundglass, "--version").stdout.strip() == f"groundglass {__version__}"
    installed = {path.name.partition("-")[0] for path in (tmp_path / "home").rglob("*.dist-info")}
    assert installed & {"onnxruntime", "torch", "timm", "lightning"} == {"onnxruntime"}
    write_png(make_phantom(np.random.default_rng(1), 0.4, 0.5, size=256), tmp_path / "slice.png")
    done = run(groundglass, "predict", tmp_path / "slice.png", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "ok"), done.stderr


@pytest.mark.parametrize("line", sorted({line for path in DOCUMENTS for line in PIP.findall(path.read_text("utf-8"))}))
def test_what_documents_tell_to_install_is_there(line: str) -> None:
    """From the clone; that it would be installed is enough."""
    said = install("uv", *shlex.split(line), "--dry-run", "--python", sys.executable)
    assert "does not have an extra" not in said
