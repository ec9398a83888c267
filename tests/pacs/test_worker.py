"""A real archive is answered, once and only once, whatever happens on the way; the command as its user meets it."""

import itertools
import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from tests.conftest import ID, NAME, Asked, Command, Patch, Said, Server, accepted_by_others, change_dicom, wait_for
from tests.pacs.conftest import Orthanc
from tests.pacs.test_report import words

from groundglass.pacs.worker import SeriesResult, State

SLICES = 5
EXAMPLE = Path(__file__).parents[2] / "examples" / "orthanc"
ERRORS = {
    **dict.fromkeys(("pacs/web", "ftp://pacs", "https://", "https://pacs/x?y=z", "http://[::1"), "expected the URL"),
    "http://u:hunter2@pacs/dicom-web": "do not belong into a URL",
    "http://127.0.0.1:9/dicom-web --retry 0": "cannot be reached",
    "http://pacs/dicom-web --study 1.2 --watch": "--watch",
    "http://pacs/dicom-web --since yesterday": "20260131",
}


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
    study = orthanc.put(*series[2:])
    assert states(orthanc.poll(proxy.url).study(study)) == [State.REPORTED]
    orthanc.put(*series)
    assert states(orthanc.poll(proxy.url).study(study)) == [State.REPORTED]
    assert orthanc.counted()[:2] == [2, SLICES], "each slice has one heat map"
    assert {int(each.InstanceNumber) for each in orthanc.objects("OT")} == {*range(1, SLICES + 1)}
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
    assert all(words in told for words in (f"Slices refused={SLICES}", "coronal"))


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
    odd = [{"0020000E": {"Value": [uid]}, "00080060": {"Value": ["CT"]}} for uid in ("../1", "1.9", "1.8")]

    def answer(asked: Asked) -> Said:
        """A study without UID, one that is refused, and one whose series have an odd UID, no list and no image."""
        path, said = asked.path.partition("?")[0], pass_on(asked)
        if "/series/1.8/" in path:
            return Said.json([])
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
def test_watching_survives_restarts(orthanc: Orthanc, series: list[Path], monkeypatch: Patch) -> None:
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


@pytest.fixture
def run(tiny_bundle: Path, run_command: Command) -> Command:
    """Runs the command in this process with the tiny bundle."""
    return lambda *words: run_command("pacs", "--bundle", tiny_bundle, "--threads", "1", "--dicomweb", *words)


def test_a_study_is_answered_once_and_nobody_is_named(run: Command, orthanc: Orthanc, study: str) -> None:
    status, out, err = run(orthanc.url, "--study", study)
    assert status == 0, err
    for told in (": 5 slices: 5 classified", "series score", "1 CT series: 1 reported. Research use only"):
        assert told in out
    status, again, quiet = run(orthanc.url, "--study", study)
    assert (status, "1 already reported" in again, quiet) == (0, True, "")
    assert not [secret for secret in (*NAME.split("^"), ID, "19310719") if secret in out + err + again]
    status, _, err = run(orthanc.url, "--study", "1.2.3")
    assert (status, "has no study 1.2.3" in err) == (2, True)


@pytest.mark.usefixtures("study")
def test_the_next_run_does_what_was_postponed(run: Command, proxy: Server, orthanc: Orthanc) -> None:
    pass_on, stored = proxy.answer, itertools.count()
    proxy.answer = lambda asked: Said(503) if asked.method == "POST" and next(stored) >= 2 else pass_on(asked)
    status, out, err = run(proxy.url, "--retry", "0")
    assert (status, "1 postponed" in out, "postponed" in err, "503" in err) == (3, True, True, True)
    assert not orthanc.objects("SR"), "without all the rest there is no report"
    proxy.answer = pass_on
    assert run(proxy.url)[0] == 0
    assert orthanc.counted() == [1, 5, 1]


@pytest.mark.parametrize("words", ERRORS)
def test_an_error_is_one_line(run: Command, words: str) -> None:
    status, out, err = run(*words.split())
    assert (status, out, err.strip().count("\n")) == (2, "", 0)
    assert ERRORS[words] in err
    assert "hunter2" not in err


def test_without_the_extra_the_command_says_how_to_get_it(run: Command, monkeypatch: Patch) -> None:
    for name in ("client", "worker"):
        monkeypatch.delitem(sys.modules, f"groundglass.pacs.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "requests", None)
    status, _, err = run("http://pacs/dicom-web")
    assert (status, "pip install '.[pacs]'" in err) == (2, True)


def test_the_example_of_an_orthanc(tmp_path: Path, tiny_bundle: Path, series: list[Path], monkeypatch: Patch) -> None:
    """It reports arriving chest CT alone."""
    command = f"'{sys.executable}' -m groundglass.cli.main pacs --bundle '{tiny_bundle}'"
    monkeypatch.setenv("GROUNDGLASS_PACS", command)
    example = json.loads((EXAMPLE / "orthanc.json").read_text())
    scripts = [str(EXAMPLE / name) for name in example["LuaScripts"]]
    orthanc = Orthanc(tmp_path, {**example, "StableAge": 1, "LuaScripts": scripts})
    foot = Path(shutil.copy(series[0], tmp_path / "foot.dcm"))
    uids = {"StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1", "SOPInstanceUID": "1.9.2"}
    change_dicom(foot, **uids, PatientID="another", BodyPartExamined="FOOT")
    orthanc.start()
    try:
        orthanc.put(foot)
        study = orthanc.put(*series)
        wait_for(lambda: orthanc.objects("SR"))
        (report,) = orthanc.objects("SR")
        assert report.StudyInstanceUID == study
        assert len(orthanc.objects("OT")) == len(series)
    finally:
        orthanc.kill()
