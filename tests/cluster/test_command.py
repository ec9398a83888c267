"""``groundglass predict --engine ray``, from the command line to the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_bundle: Path, run_command: Run) -> Run:
    """Runs the command in this process with the tiny bundle."""
    return lambda *words: run_command("predict", "--bundle", tiny_bundle, "--engine", "ray", *words)


def test_a_manifest_becomes_the_rows_that_one_process_writes(
    two_workers: None, run: Run, folder: Path, tmp_path: Path
) -> None:
    from pyarrow import parquet

    manifest = tmp_path / "slices.csv"
    names = "".join(f"{path}\n" for path in [*sorted((folder / "many").iterdir()), folder / "3b.png"])
    manifest.write_text(f"path\n{names}gone.png\n")
    tables = []
    for name, options in (("ray", ("--workers", 2)), ("local", ("--engine", "local"))):
        status, printed, errors = run(manifest, *options, "--json", "--output", tmp_path / f"{name}.parquet")
        assert status == 3, errors
        assert errors.count("\n") == 1, "a sum, and nothing of Ray's"
        tables.append(parquet.read_table(tmp_path / f"{name}.parquet"))
        assert [json.loads(line) for line in printed.splitlines()] == tables[-1].to_pylist()
    assert tables[0].num_rows == 302
    assert tables[0].equals(tables[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.parquet", "ray.parquet", "slices.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "local", "--workers", "2"), "--engine ray"),
        (("--engine", "local", "--address", "auto"), "--engine ray"),
        (("--threads", "2"), "--threads"),
        (("-",), "do not go with --engine ray"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, folder: Path, options: tuple[str, ...], message: str
) -> None:
    status, printed, errors = run(folder / "0.png", *options)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    assert message in errors
