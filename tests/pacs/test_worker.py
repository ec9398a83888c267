"""A real archive is answered: what is stored, once and only once, whatever happens on the way."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tests.pacs.conftest import ID, NAME, Asked, Orthanc, Said, Server, forward
from tests.pacs.test_report import words

from groundglass.errors import PacsError, PacsUnavailableError
from groundglass.inference.classifier import Classifier
from groundglass.pacs.client import Archive
from groundglass.pacs.worker import Poll, SeriesProcessor, SeriesResult, State


def poll(url: str, classifier: Classifier, retry_seconds: float = 60, *, settle: bool = False) -> Poll:
    archive = Archive(url, retry_seconds)
    return Poll(archive, SeriesProcessor(archive, classifier), settle=settle)


def states(outcomes: Iterator[SeriesResult]) -> list[State]:
    return [outcome.state for outcome in outcomes]


def upload(orthanc: Orthanc, paths: list[Path]) -> str:
    """Put images into the archive; returns their study."""
    for path in paths:
        orthanc.put(path)
    return str(pydicom.dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID)


def the_report(orthanc: Orthanc) -> pydicom.Dataset:
    (content,) = orthanc.objects("SR").values()
    return pydicom.dcmread(io.BytesIO(content))


def sop_instances(paths: list[Path]) -> set[str]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths}


def test_report_heat_maps_and_masks_lie_beside_the_images(
    orthanc: Orthanc, classifier: Classifier, series: list[Path], tmp_path: Path
) -> None:
    study = upload(orthanc, series)
    (outcome,) = poll(orthanc.url, classifier).study(study)
    assert outcome.state is State.REPORTED
    assert outcome.counts is not None
    assert outcome.counts.ok == len(series)
    report, pictures, masks = the_report(orthanc), orthanc.objects("OT"), orthanc.objects("SEG")
    assert len(pictures) == len(series)
    told = words(report)
    assert told.count("Finding=") == len(series)
    assert all(f"Source of Measurement={uid}" in told for uid in sop_instances(series))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence} == sop_instances(series)
    shown = [pydicom.dcmread(io.BytesIO(content)) for content in pictures.values()]
    assert {each.SourceImageSequence[0].ReferencedSOPInstanceUID for each in shown} == sop_instances(series)
    (segmentation,) = (pydicom.dcmread(io.BytesIO(content)) for content in masks.values())
    check_masks(segmentation, classifier, series)
    for made in (report, *shown, segmentation):
        assert (made.StudyInstanceUID, made.PatientName, made.PatientID) == (study, NAME, ID)
        assert made.SeriesInstanceUID != outcome.series
    assert len({each.SeriesInstanceUID for each in shown}) == 1
    for name, content in (orthanc.objects("SR") | pictures | masks).items():
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(content)
        check(path, report=content in orthanc.objects("SR").values())


def check_masks(segmentation: pydicom.Dataset, classifier: Classifier, series: list[Path]) -> None:
    """Each frame holds the lungs or lesions that are found on the image that it names, and lies where that lies."""
    assert [each.SegmentLabel for each in segmentation.SegmentSequence] == ["Lungs", "Lesions"]
    images = {pydicom.dcmread(path).SOPInstanceUID: path for path in series}
    labels = set()
    for item, mask in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        path = images[item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        evidence = classifier.predict(path, evidence=True).evidence
        assert evidence is not None
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(mask, evidence.cropped.lungs if number == 1 else evidence.lesions())
        place = pydicom.dcmread(path).ImagePositionPatient
        np.testing.assert_allclose(item.PlanePositionSequence[0].ImagePositionPatient, place)
        labels.add(number)
    assert labels == {1, 2}


def check(path: Path, *, report: bool) -> None:
    """Other people's tools accept what was stored."""
    if shutil.which("dciodvfy") is None or shutil.which("dsrdump") is None:
        pytest.skip("dciodvfy or dsrdump is not here: apt-get install dicom3tools dcmtk")
    verified = subprocess.run(
        ["dciodvfy", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Error" not in verified.stdout + verified.stderr
    if report:
        dumped = subprocess.run(
            ["dsrdump", str(path)], capture_output=True, text=True, timeout=120, check=False
        )
        assert (dumped.returncode, dumped.stderr) == (0, "")


def test_what_was_answered_is_not_fetched_again(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    assert states(poll(proxy.url, classifier).study(study)) == [State.REPORTED]
    before = len(proxy.asked)
    assert states(poll(proxy.url, classifier).study(study)) == [State.KNOWN]
    assert states(poll(proxy.url, classifier).all()) == [State.KNOWN]
    again = proxy.asked[before:]
    assert not [asked for asked in again if asked.method == "POST" or "/instances" in asked.path]


def test_a_series_that_has_grown_is_judged_again(
    orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series[:3])
    assert states(poll(orthanc.url, classifier).study(study)) == [State.REPORTED]
    upload(orthanc, series)
    assert states(poll(orthanc.url, classifier).study(study)) == [State.REPORTED]
    assert states(poll(orthanc.url, classifier).study(study)) == [State.KNOWN]
    assert len(orthanc.objects("SR")) == 2
    assert len(orthanc.objects("OT")) == len(series), "each slice has one heat map"


def test_a_study_that_is_not_there(orthanc: Orthanc, classifier: Classifier) -> None:
    with pytest.raises(PacsError, match=r"has no study 1\.2\.3"):
        list(poll(orthanc.url, classifier).study("1.2.3"))


def test_real_series(orthanc: Orthanc, classifier: Classifier, dicom_samples: Path) -> None:
    compressed = sorted((dicom_samples / "compressed").iterdir())
    lungs = sorted((dicom_samples / "lung-series").iterdir())[8:12]
    for paths in (compressed, lungs):
        upload(orthanc, paths)
    assert states(poll(orthanc.url, classifier).all()) == [State.REPORTED, State.REPORTED]
    assert len(orthanc.objects("SR")) == 2
    assert len(orthanc.objects("OT")) == len(compressed) + len(lungs)
    assert len(orthanc.objects("SEG")) == 2


def test_where_nothing_can_be_judged_the_report_says_so(
    orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    for path in series:
        turned = pydicom.dcmread(path)
        turned.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        turned.save_as(path)
    (outcome,) = poll(orthanc.url, classifier).study(upload(orthanc, series))
    assert outcome.counts is not None
    assert outcome.series_score is None
    told = words(the_report(orthanc))
    assert "Finding=" not in told
    assert f"Slices refused={len(series)}" in told
    assert "coronal" in told
    assert not orthanc.objects("OT") | orthanc.objects("SEG")


def test_an_image_that_the_archive_refuses_is_said(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    missing = str(pydicom.dcmread(series[1]).SOPInstanceUID)
    pass_on = forward(orthanc)
    proxy.answer = lambda asked: Said(404) if asked.path.endswith(missing) else pass_on(asked)
    (outcome,) = poll(proxy.url, classifier).study(study)
    assert outcome.counts is not None
    assert (outcome.counts.ok, outcome.counts.failed) == (len(series) - 1, 1)
    left_out = words(the_report(orthanc)).partition("Left out 1")[2]
    assert missing in left_out
    assert "404" in left_out


def test_another_patients_image_is_never_judged(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    first, second = (str(pydicom.dcmread(path).SOPInstanceUID) for path in series[:2])
    pass_on = forward(orthanc)

    def mix_up(asked: Asked) -> Said:
        return pass_on(Asked(asked.method, asked.path.replace(first, second), asked.headers, asked.body))

    proxy.answer = mix_up
    (outcome,) = poll(proxy.url, classifier).study(study)
    assert outcome.counts is not None
    assert outcome.counts.failed == 1
    assert "another image than the one asked for" in words(the_report(orthanc))


def test_interrupted_it_goes_on(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    pass_on = forward(orthanc)

    def full_after_two(asked: Asked) -> Said:
        return Said(503) if asked.method == "POST" and proxy.stored() > 2 else pass_on(asked)

    proxy.answer = full_after_two
    (outcome,) = poll(proxy.url, classifier, retry_seconds=0).study(study)
    assert outcome.state is State.POSTPONED
    assert "503" in (outcome.reason or "")
    assert not orthanc.objects("SR"), "without all the rest there is no report"
    proxy.answer = pass_on
    assert states(poll(proxy.url, classifier).study(study)) == [State.REPORTED]
    assert len(orthanc.objects("SR")) == 1
    assert len(orthanc.objects("OT")) == len(series)


def test_a_server_with_many_faults_loses_nothing(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    pass_on, count = forward(orthanc), itertools.count()

    def every_third(asked: Asked) -> Said:
        number = next(count)
        if number % 6 == 2:
            return Said(500)
        said = pass_on(asked)
        return Said(said.status, said.body, said.headers, len(said.body) // 2) if number % 6 == 5 else said

    proxy.answer = every_third
    assert states(poll(proxy.url, classifier).study(study)) == [State.REPORTED]
    assert len(orthanc.objects("SR")) == 1
    assert len(orthanc.objects("OT")) == len(series)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["images", "answers"])
def test_a_killed_and_restarted_server_loses_nothing(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path], moment: str
) -> None:
    study = upload(orthanc, series)
    pass_on, seen = forward(orthanc), Counter[str]()
    threads: list[threading.Thread] = []

    def kill_once(asked: Asked) -> Said:
        kind = "answers" if asked.method == "POST" else "images" if "/instances/" in asked.path else ""
        seen[kind] += 1
        if kind == moment and seen[kind] == 2 and not threads:
            orthanc.kill()
            threads.append(threading.Thread(target=orthanc.start))
            threads[0].start()
        return pass_on(asked)

    proxy.answer = kill_once
    assert states(poll(proxy.url, classifier, retry_seconds=120).study(study)) == [State.REPORTED]
    threads[0].join()
    assert len(orthanc.objects("SR")) == 1
    assert len(orthanc.objects("OT")) == len(series)
    assert words(the_report(orthanc)).count("Finding=") == len(series), "no slice was given up"


def test_a_server_that_stays_away_ends_the_run(proxy: Server, classifier: Classifier) -> None:
    proxy.answer = lambda asked: Said(502)
    with pytest.raises(PacsUnavailableError, match="502"):
        list(poll(proxy.url, classifier, retry_seconds=0).all())


def test_an_odd_series_is_put_off_alone_and_a_modality_is_looked_up(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    study = upload(orthanc, series)
    pass_on = forward(orthanc)
    odd = [{"0020000E": {"vr": "UI", "Value": ["../1"]}, "00080060": {"vr": "CS", "Value": ["CT"]}}]
    odd.append({"0020000E": {"vr": "UI", "Value": ["1.9"]}, "00080060": {"vr": "CS", "Value": ["CT"]}})

    def answer(asked: Asked) -> Said:
        """A study without UID, one that is refused, and one whose second series has an odd UID, the third no list."""
        path, said = asked.path.partition("?")[0], pass_on(asked)
        if "/series/1.9/" in path or "/studies/1.7/" in path:
            return Said(404)
        if path.endswith("/studies") and asked.method == "GET" and said.body not in {b"", b"[]"}:
            listed = [{"0020000D": {}}, {"0020000D": {"Value": ["1.7"]}}, *json.loads(said.body)]
            return Said.json(listed)
        if path.endswith(f"/{study}/series") and "offset=0" in asked.path:
            found = json.loads(said.body)
            for each in found:
                del each["00080060"]
            return Said.json([*odd, *found])
        return said

    proxy.answer = answer
    outcomes = list(poll(proxy.url, classifier, retry_seconds=0).all())
    assert [outcome.state for outcome in outcomes] == [State.POSTPONED] * 4 + [State.REPORTED]
    assert all(outcome.reason for outcome in outcomes[:4])
    assert len(orthanc.objects("SR")) == 1
    again = poll(proxy.url, classifier, retry_seconds=0).study(study)
    assert states(again) == [State.POSTPONED, State.POSTPONED, State.KNOWN], "report and pictures are no CT"


class EnoughError(Exception):
    """Ends a watch, which by itself never ends."""


@pytest.mark.slow
def test_watching_sees_what_comes_in_and_survives_restarts(
    orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    happens = iter(
        (
            lambda: upload(orthanc, series[:2]),
            lambda: upload(orthanc, series),
            lambda: None,
            orthanc.kill,
            orthanc.start,
        )
    )
    seen: list[State] = []
    away: list[str] = []

    def meanwhile(seconds: float) -> None:
        """What happens between two rounds."""
        assert seconds == 7
        following = next(happens, None)
        if following is None:
            raise EnoughError
        following()

    going = poll(orthanc.url, classifier, retry_seconds=0, settle=True)
    watched = going.forever(7, None, away.append, sleep=meanwhile)
    with pytest.raises(EnoughError):
        seen.extend(outcome.state for outcome in watched)
    assert seen[:3] == [State.GROWING, State.GROWING, State.REPORTED], "a growing series is left alone"
    assert set(seen[3:]) == {State.KNOWN}
    assert len(away) == 1
    assert "cannot be reached" in away[0]
    assert len(orthanc.objects("SR")) == 1
    assert words(the_report(orthanc)).count("Finding=") == len(series)


def test_a_series_that_cannot_be_answered_rests_and_does_not_hold_up_the_others(
    proxy: Server, orthanc: Orthanc, classifier: Classifier, series: list[Path]
) -> None:
    upload(orthanc, series)
    pass_on = forward(orthanc)
    proxy.answer = lambda asked: Said(500) if "/instances/" in asked.path else pass_on(asked)
    going = poll(proxy.url, classifier, retry_seconds=0)
    tried = []
    for _ in range(4):
        before = len(proxy.asked)
        assert states(going.all()) == [State.POSTPONED]
        tried.append(any("/instances/" in asked.path for asked in proxy.asked[before:]))
    assert tried == [True, False, True, False]
    proxy.answer = pass_on
    assert states(going.all()) == [State.POSTPONED]
    assert states(going.all()) == [State.REPORTED]
