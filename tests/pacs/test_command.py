"""``groundglass pacs`` as its user meets it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Said, Server
from tests.pacs.conftest import ID, NAME, Orthanc

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_bundle: Path, run_command: Run) -> Run:
    """Runs the command in this process with the tiny bundle."""
    return lambda *words: run_command("pacs", *words, "--bundle", tiny_bundle, "--threads", "1")


def test_a_study_is_answered_once_and_nobody_is_named(run: Run, orthanc: Orthanc, study: str) -> None:
    words = ("--dicomweb", orthanc.url, "--study", study)
    status, out, err = run(*words)
    assert status == 0, err
    assert ": 5 slices: 5 classified" in out
    assert "series score" in out
    assert "1 CT series: 1 reported. Research use only" in out
    status, again, quiet = run(*words)
    assert (status, quiet) == (0, "")
    assert "1 already reported" in again
    assert not [secret for secret in (*NAME.split("^"), ID, "19310719") if secret in out + err + again]
    assert len(orthanc.objects("SR")) == 1


def test_series_that_are_postponed_give_status_3(run: Run, proxy: Server, study: str) -> None:
    pass_on = proxy.answer
    proxy.answer = lambda asked: Said(500) if asked.method == "POST" else pass_on(asked)
    status, out, err = run("--dicomweb", proxy.url, "--retry", "0")
    assert status == 3
    assert "postponed" in err
    assert "500" in err
    assert "1 postponed" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dicomweb", "pacs/dicom-web"], "expected the URL"),
        (["--dicomweb", "http://u:hunter2@pacs/dicom-web"], "do not belong into a URL"),
        (["--dicomweb", "http://127.0.0.1:9/dicom-web", "--retry", "0"], "cannot be reached"),
        (["--dicomweb", "http://pacs/dicom-web", "--study", "1.2", "--watch"], "--watch"),
        (["--dicomweb", "http://pacs/dicom-web", "--since", "yesterday"], "20260131"),
    ],
)
def test_an_error_is_one_line(run: Run, words: list[str], said: str) -> None:
    status, out, err = run(*words)
    assert status == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "hunter2" not in err


def test_a_refused_token_is_not_repeated(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDGLASS_PACS_TOKEN", "hunter2")
    server.answer = lambda asked: Said(401)
    status, _, err = run("--dicomweb", server.url)
    assert (status, "GROUNDGLASS_PACS_TOKEN" in err, "hunter2" in err) == (2, True, False)


@pytest.mark.slow
def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['requests'] = None; from groundglass.cli.main import main; "
        "sys.argv[1:] = ['pacs', '--dicomweb', 'http://pacs/dicom-web']; main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "pip install '.[pacs]'" in done.stderr
