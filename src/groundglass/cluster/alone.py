"""Files that took their worker down with them: judged here, in a process that may die of each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from groundglass.cluster.units import Unit
from groundglass.errors import GroundglassError, PredictionError
from groundglass.imaging.slice import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.finding import Finding, Status


def judge_alone(unit: Unit, bundle: Bundle, *, keep_identifiers: bool) -> Iterator[Finding]:
    """Judge a unit in a process of its own; a file that kills it gets a finding that says so.

    Args:
        unit: to be judged.
        bundle: opened from files that are still there.
        keep_identifiers: findings say who is on a slice.

    Raises:
        PredictionError: the process cannot work at all.
    """
    rest = list(unit.files)
    while rest:
        task = {
            "bundle": str(bundle.path),
            "precision": bundle.precision,
            "keep_identifiers": keep_identifiers,
            "files": rest,
            "of_folder": unit.of_folder,
        }
        answers, status, said = _run(task)
        for answer in answers:
            yield from map(Finding.from_row, answer)
        rest = rest[len(answers) :]
        if status == _USER_ERROR:
            raise PredictionError(said)
        if rest:
            reason = f"reading it ended its process ({_death(status)})"
            patient = Patient() if keep_identifiers else None
            yield Finding(Status.FAILED, rest.pop(0), bundle.id, reason=reason, patient=patient)


_USER_ERROR = 2


def _run(task: dict[str, object]) -> tuple[list[list[dict[str, object]]], int, str]:
    """Findings of each file that was done, exit status, and the error that was told."""
    command = [sys.executable, "-m", "groundglass.cluster.alone"]
    done = subprocess.run(  # noqa: S603 - nothing of the command comes from outside
        command, input=json.dumps(task), capture_output=True, text=True, encoding="utf-8", check=False
    )
    lines = done.stdout.split("\n")[:-1]  # what follows the last newline was cut off
    return [json.loads(line) for line in lines], done.returncode, done.stderr.strip()


def _death(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _main() -> int:
    """Judge the files named on standard input; for each a line with its findings."""
    task = json.loads(sys.stdin.buffer.read())
    try:
        bundle = Bundle.open(task["bundle"], task["precision"], threads=1)
        classifier = Classifier(bundle, 1, keep_identifiers=task["keep_identifiers"])
        for file in task["files"]:
            findings = classifier.predict_files([Path(file)], of_folder=task["of_folder"])
            print(json.dumps([finding.as_row() for finding in findings]), flush=True)  # noqa: T201 - its answer
    except GroundglassError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return _USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(_main())
