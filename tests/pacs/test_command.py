"""``groundglass pacs`` as its user meets it, and the example of an Orthanc that runs it."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.conftest import Command, Said, Server, change_dicom, wait_for
from tests.pacs.conftest import ID, NAME, Orthanc

EXAMPLE = Path(__file__).parents[2] / "examples" / "orthanc"
ERRORS = {
    **dict.fromkeys(("pacs/web", "ftp://pacs", "https://", "https://pacs/x?y=z"), "expected the URL"),
    "http://u:hunter2@pacs/dicom-web": "do not belong into a URL",
    "http://127.0.0.1:9/dicom-web --retry 0": "cannot be reached",
    "http://pacs/dicom-web --study 1.2 --watch": "--watch",
    "http://pacs/dicom-web --since yesterday": "20260131",
}


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


def test_what_is_postponed_gives_status_3_and_is_done_by_the_next_run(
    run: Command, proxy: Server, orthanc: Orthanc, study: str
) -> None:
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


def test_without_the_extra_the_command_says_how_to_get_it(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("client", "worker"):
        monkeypatch.delitem(sys.modules, f"groundglass.pacs.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "requests", None)
    status, _, err = run("http://pacs/dicom-web")
    assert (status, "pip install '.[pacs]'" in err) == (2, True)


def test_the_example_of_an_orthanc_reports_arriving_chest_ct(
    tmp_path: Path, tiny_bundle: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
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
