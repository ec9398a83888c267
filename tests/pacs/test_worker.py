"""A real archive is answered: what is stored, once and only once, whatever happens on the way."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from tests.conftest import Asked, Said, Server, accepted_by_others, change_dicom
from tests.pacs.conftest import ID, NAME, Orthanc
from tests.pacs.test_report import words

from groundglass.pacs.worker import SeriesResult, State

SLICES = 5


def states(results: Iterable[SeriesResult]) -> list[State]:
    return [result.state for result in results]


def uids(paths: list[Path]) -> dict[str, Path]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in paths}


def the_report(orthanc: Orthanc) -> str:
    """The words of the only one."""
    (report,) = orthanc.objects("SR")
    return words(report)


def test_results_lie_beside_images(orthanc: Orthanc, study: str, series: list[Path], tmp_path: Path) -> None:
    (result,) = orthanc.poll().study(study)
    assert result.state is State.REPORTED
    (report,), pictures, (masks,) = (orthanc.objects(each) for each in ("SR", "OT", "SEG"))
    assert words(report).count("Finding=") == SLICES
    images = uids(series)
    assert all(f"Source of Measurement={uid}" in words(report) for uid in images)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence} == set(images)
    assert sorted(each.SourceImageSequence[0].ReferencedSOPInstanceUID for each in pictures) == sorted(images)
    assert len({each.SeriesInstanceUID for each in pictures}) == 1
    segments = set()  # each frame holds the lungs (1) or lesions that are found on the image that it names
    for frame, mask in zip(masks.PerFrameFunctionalGroupsSequence, masks.pixel_array, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found = orthanc.classifier.predict(images[source], evidence=True).evidence
        assert found is not None
        segments.add(segment := frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        np.testing.assert_array_equal(mask, found.cropped.lungs if segment == 1 else found.lesions())
    assert segments == {1, 2}
    for made in (report, *pictures, masks):
        assert (made.StudyInstanceUID, made.PatientName, made.PatientID) == (study, NAME, ID)
        assert made.SeriesInstanceUID != result.series
        accepted_by_others(made, tmp_path)


def test_only_a_grown_series_is_fetched_again(proxy: Server, orthanc: Orthanc, series: list[Path]) -> None:
    study = orthanc.put(*series[:3])
    assert states(orthanc.poll(proxy.url).study(study)) == [State.REPORTED]
    orthanc.put(*series)
    assert states(orthanc.poll(proxy.url).study(study)) == [State.REPORTED]
    assert orthanc.counted()[:2] == [2, SLICES], "each slice has one heat map"
    before = len(proxy.asked)
    assert states(orthanc.poll(proxy.url).study(study)) == states(orthanc.poll(proxy.url).all()) == [State.KNOWN]
    assert not [asked for asked in proxy.asked[before:] if asked.method == "POST" or "/instances" in asked.path]


def test_real_series(orthanc: Orthanc, dicom_samples: Path) -> None:
    compressed = sorted((dicom_samples / "compressed").iterdir())
    lungs = sorted((dicom_samples / "lung-series").iterdir())[8:12]
    orthanc.put(*compressed, *lungs)
    assert states(orthanc.poll().all()) == [State.REPORTED, State.REPORTED]
    assert orthanc.counted() == [2, len(compressed) + len(lungs), 2]


def test_where_nothing_can_be_classified_the_report_says_so(orthanc: Orthanc, series: list[Path]) -> None:
    for path in series:
        change_dicom(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    (result,) = orthanc.poll().study(orthanc.put(*series))
    assert result.summary is not None
    assert result.summary.series_score is None
    assert orthanc.counted() == [1, 0, 0]
    told = the_report(orthanc)
    assert "Finding=" not in told
    assert f"Slices refused={SLICES}" in told
    assert "coronal" in told


def test_a_wrong_image_fails_alone(proxy: Server, orthanc: Orthanc, study: str, series: list[Path]) -> None:
    (missing, other, third, *_), pass_on = uids(series), proxy.answer

    def answer(asked: Asked) -> Said:
        path = asked.path.replace(other, third)
        return Said(404) if missing in path else pass_on(Asked(asked.method, path, asked.headers, asked.body))

    proxy.answer = answer
    (result,) = orthanc.poll(proxy.url).study(study)
    assert result.summary is not None
    assert (result.summary.counts.ok, result.summary.counts.failed) == (SLICES - 2, 2)
    _, *left_out = the_report(orthanc).split("Left out ")
    expected = ((missing, "404"), (other, "another image than the one"))
    for told, lines in zip(sorted(left_out, key=lambda told: "404" not in told), expected, strict=True):
        assert [line for line in lines if line not in told] == []


def test_odd_series_wait_and_a_modality_is_looked_up(proxy: Server, orthanc: Orthanc, study: str) -> None:
    pass_on = proxy.answer
    odd = [{"0020000E": {"Value": [uid]}, "00080060": {"Value": ["CT"]}} for uid in ("../1", "1.9")]

    def answer(asked: Asked) -> Said:
        """A study without UID, one that is refused, and one whose second series has an odd UID, the third no list."""
        path, said = asked.path.partition("?")[0], pass_on(asked)
        if "/series/1.9/" in path or "/studies/1.7/" in path:
            return Said(404)
        if path.endswith("/studies") and asked.method == "GET" and said.body not in {b"", b"[]"}:
            return Said.json([{"0020000D": {}}, {"0020000D": {"Value": ["1.7"]}}, *json.loads(said.body)])
        if path.endswith(f"/{study}/series") and "offset=0" in asked.path:
            listed = [{tag: each[tag] for tag in each if tag != "00080060"} for each in json.loads(said.body)]
            return Said.json([*odd, *listed])
        return said

    proxy.answer = answer
    results = list(orthanc.poll(proxy.url, 0).all())
    assert states(results) == [State.POSTPONED] * 4 + [State.REPORTED]
    assert all(result.reason for result in results[:4])
    assert len(orthanc.objects("SR")) == 1
    again = states(orthanc.poll(proxy.url, 0).study(study))
    assert again == [State.POSTPONED, State.POSTPONED, State.KNOWN], "report and pictures are no CT"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["images", "answers"])
def test_a_restarted_server_loses_nothing(proxy: Server, orthanc: Orthanc, study: str, moment: str) -> None:
    pass_on, seen = proxy.answer, Counter[str]()
    restart = threading.Thread(target=orthanc.start)

    def kill_once(asked: Asked) -> Said:
        kind = "answers" if asked.method == "POST" else "images" if "/instances/" in asked.path else ""
        seen[kind] += 1
        if kind == moment and seen[kind] == 2:
            orthanc.kill()
            restart.start()
        return pass_on(asked)

    proxy.answer = kill_once
    assert states(orthanc.poll(proxy.url, 120).study(study)) == [State.REPORTED]
    restart.join()
    assert len(orthanc.objects("OT")) == SLICES
    assert the_report(orthanc).count("Finding=") == SLICES, "no slice was given up"


@pytest.mark.slow
def test_watching_sees_what_comes_in_and_survives_restarts(
    orthanc: Orthanc, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    happens: list[Callable[[], object]] = [lambda: orthanc.put(*series[:2]), lambda: orthanc.put(*series)]
    happens += [str, orthanc.kill, orthanc.start]
    seen: list[State] = []
    away: list[str] = []

    def meanwhile(seconds: float) -> None:
        """What happens between two polls; an error ends the watch, which by itself never ends."""
        assert seconds == 7
        happens.pop(0)()

    monkeypatch.setattr("groundglass.pacs.worker.time", SimpleNamespace(sleep=meanwhile))
    watched = orthanc.poll(retry_seconds=0, settle=True).forever(7, None, away.append)
    with pytest.raises(IndexError):
        seen.extend(result.state for result in watched)
    assert seen[:3] == [State.GROWING, State.GROWING, State.REPORTED], "a growing series is left alone"
    assert set(seen[3:]) == {State.KNOWN}
    (reason,) = away
    assert "cannot be reached" in reason
    assert the_report(orthanc).count("Finding=") == SLICES


def test_a_series_that_cannot_be_answered_rests(proxy: Server, orthanc: Orthanc, study: str) -> None:
    pass_on, going, tried = proxy.answer, orthanc.poll(proxy.url, 0), []
    proxy.answer = lambda asked: Said(500) if "/instances/" in asked.path else pass_on(asked)
    for _ in range(4):
        before = len(proxy.asked)
        assert states(going.all()) == [State.POSTPONED]
        tried.append(any("/instances/" in asked.path for asked in proxy.asked[before:]))
    assert tried == [True, False, True, False]
    proxy.answer = pass_on
    assert states(going.all()) == [State.POSTPONED]
    assert states(going.all()) == [State.REPORTED]
