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


def test_series_are_written_from_apex_to_base_each_of_a_patient_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "series"
    arguments = ["data", "phantoms", "--series", "0,0.9", "--count", "3", "--size", "96"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(output)])
    assert result.exit_code == 0, result.output
    healthy, ill = (list(read_slices(output / f"severity-{severity}")) for severity in ("0.00", "0.90"))
    assert len(healthy) == len(ill) == 3
    assert len({piece.origin.series for piece in [*healthy, *ill]}) == 2
    heights = [piece.origin.position[2] for piece in ill if piece.origin.position is not None]
    assert len(set(heights)) == 3


def test_series_that_will_not_do_leave_nothing_behind(tmp_path: Path) -> None:
    for severities, complaint in (
        ("0,2", "0 to 1"),
        ("mild", "mild"),
        ("0.5,0.5", "once"),
        ("nan", "0 to 1"),
    ):
        arguments = ["data", "phantoms", "--series", severities, "--output", str(tmp_path / "s")]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, DataError)
        assert complaint in str(result.exception)
        assert not (tmp_path / "s").exists()
