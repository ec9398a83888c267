"""What runs in each of Ray's workers: one classifier, loaded once, on one thread."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundglass import __version__
from groundglass.atomic import write_bytes
from groundglass.errors import BundleError, GroundglassError, PredictionError
from groundglass.inference.bundle import INFO, Bundle, Precision
from groundglass.inference.classifier import Classifier

if TYPE_CHECKING:
    import pyarrow as pa


ATTEMPTS = 3
"""How often a unit may be begun: workers die of many things, but hardly three times at the same files."""


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to know; plain values, so that it can be sent to another machine.

    Attributes:
        bundle: id of the bundle, precision included.
        precision: of its model.
        zipped: whether the bundle is a zip.
        keep_identifiers: findings say who is on a slice.
        version: of groundglass.
    """

    bundle: str
    precision: Precision
    zipped: bool
    keep_identifiers: bool
    version: str = __version__


def bundle_contents(bundle: Bundle) -> dict[str, bytes]:
    """A bundle's files by name; the one file of a zip.

    Raises:
        BundleError: one is gone.
    """
    path = bundle.path
    names = [path] if path.is_file() else [path / name for name in (INFO, *bundle.info.files)]
    try:
        return {file.name: file.read_bytes() for file in names}
    except OSError as error:
        raise BundleError(f"{error.filename}: cannot be read ({error.strerror})") from None


class Worker:
    """Judges units; Ray makes one in each of its processes.

    Args:
        assignment: which bundle to use, and how.
        contents: reference to the bundle's files by name, so that no worker needs to see its folder; they are
            verified here again.
        ledger: handle of a ``Ledger``, which sees a worker die that cannot tell any more.
    """

    def __init__(self, assignment: Assignment, contents: Any, ledger: Any) -> None:
        import ray  # noqa: PLC0415 - an extra

        self._ray, self._ledger = ray, ledger
        self._problem: str | None = None
        try:
            self._classifier = _load(assignment, ray.get(contents))
        except GroundglassError as error:
            # Told with the first unit: Ray would hide it behind the death of this worker, and try again.
            self._problem = str(error)

    def __call__(self, units: pa.Table) -> pa.Table:
        """Judge the units of a table.

        Args:
            units: columns ``number`` and ``unit``, see :func:`groundglass.cluster.predict.unit_table`.

        Returns:
            Columns ``number`` and ``answer``: for each unit, in order, the text of a JSON object. It holds
            ``findings``; or ``lost``, why the unit should be judged elsewhere; or ``problem``, why there is
            no use in going on.
        """
        import pyarrow as pa  # noqa: PLC0415 - comes with Ray

        rows = zip(units.column("number").to_pylist(), units.column("unit").to_pylist(), strict=True)
        answers = [json.dumps(self._answer(number, json.loads(text))) for number, text in rows]
        return pa.table({"number": units.column("number"), "answer": answers})

    def _answer(self, number: int, unit: Mapping[str, Any]) -> dict[str, object]:
        if self._problem is not None:
            return {"problem": self._problem}
        if self._ray.get(self._ledger.begin.remote(number)) > ATTEMPTS:
            return {"lost": "its workers died"}
        try:
            findings = self._classifier.predict_files(map(Path, unit["files"]), of_folder=unit["of_folder"])
            return {"findings": [finding.as_row() for finding in findings]}
        except GroundglassError as error:
            return {"problem": str(error)}
        except Exception as error:  # noqa: BLE001 - one slice must not end the run: the driver looks closer
            return {"lost": repr(error)}


class Ledger:
    """Counts how often each unit was begun. Runs in a process of its own, which no unit takes down."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Note that a unit is begun; how often it was by now."""
        self._begun[number] += 1
        return self._begun[number]


def _load(assignment: Assignment, contents: Mapping[str, bytes]) -> Classifier:
    import cv2  # noqa: PLC0415 - not needed where a Worker is only sent from

    cv2.setNumThreads(1)
    if assignment.version != __version__:
        raise PredictionError(
            f"a worker has groundglass {__version__}, the driver {assignment.version}; install one version"
        )
    with tempfile.TemporaryDirectory(prefix="groundglass-") as folder:
        for name, content in contents.items():
            write_bytes(Path(folder, name), content)
        path = Path(folder, next(iter(contents))) if assignment.zipped else Path(folder)
        bundle = Bundle.open(path, assignment.precision, threads=1)
    if bundle.id != assignment.bundle:
        raise BundleError("the bundle was changed while the workers started; start again")
    return Classifier(bundle, threads=1, keep_identifiers=assignment.keep_identifiers)
