from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import DataError
from groundglass.imaging.read import read_slices


def test_phantoms_are_written_as_dicom_and_read_again(tmp_path: Path) -> None:
    output = tmp_path / "p"
    arguments = ["data", "phantoms", "--count", "2", "--severity", "0.4:0.5", "--seed", "1", "--size", "96"]
    result = CliRunner().invoke(app, [*arguments, "--format", "dicom", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "2 phantoms" in result.output
    assert sorted(path.parent.name for path in output.rglob("*.dcm")) == ["COVID", "NonCOVID"]
    assert len(list(read_slices(output / "COVID"))) == 1


def test_a_severity_that_will_not_do_is_one_clear_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["data", "phantoms", "--severity", "much", "--output", str(tmp_path / "p")]
    )
    assert isinstance(result.exception, DataError)
    assert "much" in str(result.exception)
    assert not (tmp_path / "p").exists()
