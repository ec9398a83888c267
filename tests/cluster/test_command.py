"""``groundglass predict --engine ray``, from the command line to the file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from groundglass.cli.main import main

pytestmark = pytest.mark.slow
Run = Callable[..., tuple[int, str, str]]


def command(bundle: Path, *arguments: object) -> list[str]:
    return [str(word) for word in ("groundglass", "predict", "--bundle", bundle, *arguments)]


@pytest.fixture
def run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; gives exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", command(tiny_bundle, *arguments))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


def test_a_manifest_becomes_the_rows_that_one_process_writes(
    two_workers: None, run: Run, folder: Path, tmp_path: Path
) -> None:
    from pyarrow import parquet

    manifest = tmp_path / "slices.csv"
    names = "".join(f"{path}\n" for path in [*sorted((folder / "many").iterdir()), folder / "3b.png"])
    manifest.write_text(f"path\n{names}gone.png\n")
    tables = []
    for name, options in (("ray", ("--engine", "ray", "--workers", 2)), ("local", ())):
        status, printed, errors = run(manifest, *options, "--json", "--output", tmp_path / f"{name}.parquet")
        assert status == 3, errors
        assert errors.count("\n") == 1, "a sum, and nothing of Ray's"
        tables.append(parquet.read_table(tmp_path / f"{name}.parquet"))
        assert [json.loads(line) for line in printed.splitlines()] == tables[-1].to_pylist()
    assert tables[0].num_rows == 302
    assert tables[0].equals(tables[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.parquet", "ray.parquet", "slices.csv"]


def test_an_interrupted_run_leaves_predictions_to_go_on_from(
    two_workers: None, run: Run, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = (
        folder / "many",
        folder / "3b.png",
        "--engine",
        "ray",
        "--workers",
        2,
        "--quiet",
        "--output",
        output,
    )
    with subprocess.Popen(
        [sys.executable, "-m", "groundglass.cli.main", *command(tiny_bundle, *options)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        predictions = output / "predictions.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (predictions.exists() and predictions.stat().st_size):
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert said == ""
    assert "--resume" in errors
    begun = len(predictions.read_text().splitlines())
    assert 0 < begun < 301
    status, _, errors = run(*options, "--resume")
    assert status == 3, errors
    files = [json.loads(line)["file"] for line in predictions.read_text().splitlines()]
    assert len(files) == len(set(files)) == 301
    assert (output / "report.html").exists()
    assert not list((output / "overlays").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "2"), "--engine ray"),
        (("--address", "auto"), "--engine ray"),
        (("--engine", "ray", "--threads", "2"), "--threads"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, folder: Path, options: tuple[str, ...], message: str
) -> None:
    status, printed, errors = run(folder / "0.png", *options)
    assert (status, printed) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
