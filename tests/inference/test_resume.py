"""What an earlier run left is mended, checked and gone on with; nothing is lost and nothing doubled."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from groundglass.errors import PredictionError
from groundglass.imaging.slice import Patient
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.writers import appending, json_line, load_done, read_predictions, settle

A = Prediction(Status.OK, "a.png", "b1", None, 0.5, "uncertain", (), ())
B = Prediction(Status.REFUSED, "b.png", "b1", "a photograph")
C = Prediction(Status.FAILED, "c.png", "b1", "truncated")
V = [replace(A, file="v.nii", frame=frame) for frame in range(3)]


def file_of(path: Path, *predictions: Prediction, tail: bytes = b"") -> Path:
    target = path / "predictions.jsonl"
    target.write_bytes(b"".join(map(json_line, predictions)) + tail)
    return target


def test_what_is_done_and_what_is_tried_again(tmp_path: Path) -> None:
    done = load_done(file_of(tmp_path, A, B, C, *V), "b1", keep_identifiers=False)
    assert done.predictions == 6
    assert done.has_file("a.png")
    assert done.has_file("b.png"), "what was refused is not asked about again"
    assert not done.has_file("c.png"), "what failed is"
    assert not done.has_file("v.nii"), "only its end tells whether a volume is done"
    assert all(done.has_slice("v.nii", frame) for frame in range(3))
    assert not done.has_slice("v.nii", 3)
    assert not done.has_slice("v.nii", None)
    assert not done.has_file("d.png")


def test_names_of_bytes_are_known_again(tmp_path: Path) -> None:
    done = load_done(file_of(tmp_path, replace(A, file="\udcff.png")), "b1", keep_identifiers=False)
    assert done.has_file("\udcff.png")


@pytest.mark.parametrize("cut", [2, 7, 60])
def test_an_unfinished_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = file_of(tmp_path, A, B, tail=json_line(C)[:-cut])
    assert load_done(path, "b1", keep_identifiers=False).predictions == 2
    assert list(read_predictions(path)) == [A, B]


def test_a_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, tail=json_line(B)[:-1])
    assert load_done(path, "b1", keep_identifiers=False).predictions == 2
    assert path.read_bytes() == json_line(A) + json_line(B)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"{", b"x" * 200_000])
def test_rubbish_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = file_of(tmp_path, A, tail=tail)
    load_done(path, "b1", keep_identifiers=False)
    assert path.read_bytes() == json_line(A)


def test_a_file_of_nothing_but_a_beginning(tmp_path: Path) -> None:
    path = file_of(tmp_path, tail=b'{"file": "a')
    assert load_done(path, "b1", keep_identifiers=False).predictions == 0
    assert path.read_bytes() == b""
    assert load_done(path, "b1", keep_identifiers=False).predictions == 0


def test_rubbish_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, tail=b"rubbish\n" + json_line(B))
    with pytest.raises(PredictionError, match="line 2"):
        load_done(path, "b1", keep_identifiers=False)


def test_bundles_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="bundle b1, not of b2"):
        load_done(file_of(tmp_path, A), "b2", keep_identifiers=False)


def test_predictions_with_and_without_names_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="without --keep-identifiers"):
        load_done(file_of(tmp_path, A), "b1", keep_identifiers=True)
    named = replace(A, patient=Patient())
    with pytest.raises(PredictionError, match="with --keep-identifiers"):
        load_done(file_of(tmp_path, named), "b1", keep_identifiers=False)
    assert load_done(file_of(tmp_path, named), "b1", keep_identifiers=True).predictions == 1


def test_failures_give_way_to_later_predictions_of_the_same_file(tmp_path: Path) -> None:
    now = replace(A, file="c.png")
    path = file_of(tmp_path, A, C, B, now)
    settle(path)
    assert list(read_predictions(path)) == [A, B, now]
    again = replace(C, reason="truncated still")
    path = file_of(tmp_path, C, A, again)
    settle(path)
    assert list(read_predictions(path)) == [A, again]


def test_a_failure_of_a_folder_or_zip_gives_way_to_what_was_found_in_it(tmp_path: Path) -> None:
    failures = [replace(C, file=name) for name in ("d", "s.zip", "/", "e")]
    found = [replace(A, file=name) for name in ("d/x/1.png", "s.zip!1.png", "/1.png", "ee/1.png")]
    path = file_of(tmp_path, *failures, *found)
    settle(path)
    assert list(read_predictions(path)) == [failures[3], *found]


def test_a_volume_that_fails_half_way_keeps_both(tmp_path: Path) -> None:
    failure = replace(C, file="v.nii")
    path = file_of(tmp_path, *V, failure, A)
    settle(path)
    assert list(read_predictions(path)) == [*V, failure, A]
    later = replace(A, file="v.nii", frame=3)
    path = file_of(tmp_path, *V, failure, A, later)
    settle(path)
    assert list(read_predictions(path)) == [*V, A, later]


def test_a_file_with_nothing_to_settle_is_not_touched(tmp_path: Path) -> None:
    path = file_of(tmp_path, A, C)
    before = path.stat().st_ino
    settle(path)
    assert path.stat().st_ino == before


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "new" / "predictions.jsonl"
    script = (
        "import sys; from pathlib import Path; from groundglass.inference.writers import appending\n"
        "with appending(Path(sys.argv[1])): pass"
    )
    with appending(path):
        other = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
        )
    assert other.returncode != 0
    assert "another process is writing to it" in other.stderr
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PredictionError, match="cannot be written"), appending(tmp_path / "file" / "x.jsonl"):
        pass
