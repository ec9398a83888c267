"""The classifier of one process, multiplied by Ray: predictions in the order of their files, none twice."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from groundglass import __version__
from groundglass.errors import BundleError, GroundglassError, ImageError, PredictionError
from groundglass.files import usable_cores, write_bytes
from groundglass.imaging.read import list_images
from groundglass.imaging.slice import Patient
from groundglass.imaging.source import without_stderr
from groundglass.inference.bundle import INFO, Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.inputs import named_by
from groundglass.inference.prediction import Prediction, Status

LARGEST = 64
"""Files of a unit: a third of a second's work, so that the last worker does not keep the others waiting."""

MOST_LOST = 16
"""Units that may take their workers down before these are taken to die of something else."""

TIMEOUT = 20.0
"""Seconds after which a cluster that does not answer is given up."""

# Each of these may hold a whole series, and is a unit by itself.
_OF_MANY_SLICES = (".zip", ".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr")
_RETRIES = (
    2  # of a unit whose worker died: workers die of many things, but hardly three times at the same files
)
_AHEAD = 4  # units for each worker that are under way or waiting
# Predictions are small: what Ray keeps in shared memory stays far below this.
_OBJECT_STORE = 128 * 2**20
_LONGEST_FOLDER = 32

Unit = tuple[str, ...]
"""Paths of files that a worker classifies in one go."""


@dataclass(frozen=True)
class RayClassifier:
    """Many classifiers that are used as one.

    Attributes:
        bundle: opened and verified; its files must stay where they are.
        workers: processes of one thread each; one per core of the machine or cluster unless given.
        address: of a Ray cluster, see :func:`ray_session`; None starts a Ray on this machine for as long as
            the predictions are drawn.
        keep_identifiers: predictions say who is on a slice, where the file does.
    """

    bundle: Bundle
    workers: int | None = None
    address: str | None = None
    keep_identifiers: bool = False

    def predict_all(
        self,
        paths: Iterable[Path],
        *,
        evidence: bool = False,
        skip: Callable[[str, int | None], bool] | None = None,
        skip_file: Callable[[str], bool] | None = None,
    ) -> Generator[Prediction, None, None]:
        """Classify every slice of files, folders, zips and manifests.

        Predictions are those of ``Classifier.predict_all``, in its order; this process lists the folders and
        reads the headers of DICOM files. Nothing but paths and predictions travels: workers read the files,
        which must have the same paths on all machines.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: may be asked for, and is not given: pixels do not travel.
            skip: given file and frame, leaves a slice's prediction out.
            skip_file: given a file's name, leaves it out unread.

        Raises:
            PredictionError: Ray is not installed, cannot be started or joined, or workers cannot work.
            BundleError: the bundle's files are gone or changed.
            DataError: a manifest is damaged.
        """
        contents = _bundle_contents(self.bundle)
        with ray_session(self.address, self.workers) as workers:
            for prediction in _Run(self, workers, contents).predictions(steps(paths, skip_file)):
                if skip is None or not skip(prediction.file, prediction.frame):
                    yield prediction


def steps(paths: Iterable[Path], skip: Callable[[str], bool] | None = None) -> Iterator[Unit | ImageError]:
    """Units in the order in which one process reads the paths, and between them what cannot be read.

    Folders are gone through by :func:`groundglass.imaging.read.list_images`.

    Args:
        paths: files, folders, zips, members of zips, or manifests (``.csv``), which stand for the files they
            name.
        skip: called with a file's name, leaves it out.

    Raises:
        DataError: a manifest is damaged.
    """
    waiting: list[str] = []
    for item in chain.from_iterable(_listed(path, skip) for path in paths):
        if not isinstance(item, ImageError):
            waiting.append(item)
            if len(waiting) < LARGEST and not item.lower().endswith(_OF_MANY_SLICES):
                continue
        if waiting:
            yield tuple(waiting)
            waiting = []
        if isinstance(item, ImageError):
            yield item
    if waiting:
        yield tuple(waiting)


def _listed(path: Path, skip: Callable[[str], bool] | None) -> Iterator[str | ImageError]:
    if not path.is_dir():
        yield from (str(file) for file in named_by(path) if skip is None or not skip(str(file)))
        return
    errors: list[ImageError] = []
    for source, _ in list_images(path, on_error=errors.append, skip=skip):
        yield from errors
        errors.clear()
        yield source.name
    yield from errors


@dataclass(frozen=True)
class _Assignment:
    """What a worker needs to know; plain values, so that they can be sent to another machine."""

    run: str
    bundle: str
    zipped: bool
    keep_identifiers: bool
    version: str = __version__


class _Run:
    """One prediction, while Ray runs."""

    def __init__(self, classifier: RayClassifier, workers: int, contents: Mapping[str, bytes]) -> None:
        self._ray = _import_ray()
        self._bundle, self._keep = classifier.bundle, classifier.keep_identifiers
        sent, zipped = self._ray.put(contents), self._bundle.path.is_file()
        self._given = (sent, _Assignment(sent.hex(), self._bundle.id, zipped, self._keep))
        self._ahead = workers * _AHEAD
        self._lost = 0

    def predictions(self, found: Iterator[Unit | ImageError]) -> Iterator[Prediction]:
        """What is predicted of some steps, in their order; a bounded number of them is under way."""
        under_way: deque[tuple[Unit | ImageError, Any]] = deque()
        try:
            for step in found:
                under_way.append(
                    (step, None if isinstance(step, ImageError) else self._begin(step, _RETRIES))
                )
                if len(under_way) > self._ahead:
                    yield from self._taken(*under_way.popleft())
            while under_way:
                yield from self._taken(*under_way.popleft())
        finally:
            for _, task in under_way:
                if task is not None:
                    self._ray.cancel(task, force=True)

    def _begin(self, unit: Unit, retries: int) -> Any:
        # A process that classifies one unit at a time, and is kept for the next.
        task = self._ray.remote(num_cpus=1, max_retries=retries)(_classify)
        return task.remote(*self._given, unit)

    def _taken(self, step: Unit | ImageError, task: Any) -> Iterator[Prediction]:
        if isinstance(step, ImageError):
            yield self._failed(step.path, step.reason)
            return
        predicted = self._result(task)
        yield from self._one_by_one(step) if predicted is None else predicted

    def _result(self, task: Any) -> list[Prediction] | None:
        """What a task predicted; None where its process died or stumbled.

        Raises:
            PredictionError: it says why there is no use in going on.
        """
        dead = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError)
        try:
            answer = self._ray.get(task)
        except (*dead, self._ray.exceptions.RayTaskError):
            return None
        except self._ray.exceptions.RayError as error:
            raise PredictionError(f"the workers cannot continue ({_last_line(error)})") from None
        if isinstance(answer, str):
            raise PredictionError(answer)
        return list(answer)

    def _one_by_one(self, unit: Unit) -> Iterator[Prediction]:
        """The files of a unit that took its workers down; the one that does so is reported as failed."""
        self._lost += 1
        if self._lost > MOST_LOST:
            raise PredictionError(
                f"workers died of {self._lost} groups of files, the last one from {unit[0]}; have they "
                "enough memory? (fewer --workers need less)"
            )
        for file in unit:
            predicted = self._result(self._begin((file,), 0))
            if predicted is None:
                yield self._failed(file, "reading it ended its process")
            else:
                yield from predicted

    def _failed(self, file: str, reason: str) -> Prediction:
        patient = Patient() if self._keep else None
        return Prediction(Status.FAILED, file, self._bundle.id, reason=reason, patient=patient)


def _classify(contents: Mapping[str, bytes], assignment: _Assignment, files: Unit) -> list[Prediction] | str:
    """Runs in a worker: a unit's predictions, or why there is no use in going on."""
    try:
        if assignment not in _LOADED:
            _LOADED.clear()
            _LOADED[assignment] = _load(contents, assignment)
        classifier = _LOADED[assignment]
        return list(map(classifier.classify, classifier.read_files(map(Path, files))))
    except GroundglassError as error:
        return str(error)


_LOADED: dict[_Assignment, Classifier] = {}
"""The classifier of this worker, loaded once in each run."""


def _load(contents: Mapping[str, bytes], assignment: _Assignment) -> Classifier:
    """The bundle is verified here again, and no worker needs to see its folder."""
    import cv2  # noqa: PLC0415 - not needed where work is only sent from

    cv2.setNumThreads(1)
    if assignment.version != __version__:
        raise PredictionError(
            f"a worker has groundglass {__version__}, the driver {assignment.version}; install one version"
        )
    with tempfile.TemporaryDirectory(prefix="groundglass-") as folder:
        for name, content in contents.items():
            write_bytes(Path(folder, name), content)
        path = Path(folder, next(iter(contents))) if assignment.zipped else Path(folder)
        bundle = Bundle.open(path, threads=1)
    if bundle.id != assignment.bundle:
        raise BundleError("the bundle was changed while the workers started; start again")
    return Classifier(bundle, threads=1, keep_identifiers=assignment.keep_identifiers)


def _bundle_contents(bundle: Bundle) -> dict[str, bytes]:
    path = bundle.path
    names = [path] if path.is_file() else [path / name for name in (INFO, *bundle.info.files)]
    try:
        return {file.name: file.read_bytes() for file in names}
    except OSError as error:
        raise BundleError(f"{error.filename}: cannot be read ({error.strerror})") from None


@contextmanager
def ray_session(address: str | None, workers: int | None) -> Iterator[int]:
    """Ray, ready to be used in the block; gives the number of workers that find room.

    A Ray that this starts listens on the loopback interface only, asks for a token, has no dashboard, reports
    nothing to anybody and is gone, with its files, after the block. A Ray that runs in this process already
    is used and left alone.

    Args:
        address: of a cluster: ``host:port``, ``auto`` or ``ray://host:port``; None starts one here.
        workers: asked for; as many as there are cores unless given.

    Raises:
        PredictionError: Ray is not installed, does not start, or no cluster answers.
    """
    # Ray puts sockets into its folder, whose paths may be about 100 characters long.
    usual = tempfile.gettempdir()
    short = "/tmp" if len(usual) > _LONGEST_FOLDER and Path("/tmp").is_dir() else usual  # noqa: S108
    with (
        _environment(_QUIET if address else {**_QUIET, **_ALONE, "RAY_AUTH_TOKEN": _token()}),
        tempfile.TemporaryDirectory(prefix="groundglass-", dir=short, ignore_cleanup_errors=True) as folder,
    ):
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            # Ray prints that it was given a log level.
            with without_stderr():
                _join(ray, address) if address else _start(ray, workers or usable_cores(), folder)
        try:
            cores = int(ray.cluster_resources().get("CPU", 0))
            if cores < max(1, workers or 1):
                raise PredictionError(
                    f"--workers {workers or 1} are more than the {cores} cores of the Ray cluster"
                )
            yield workers or cores
        finally:
            if started:
                ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra, and a second
    except ModuleNotFoundError:
        raise PredictionError(
            "--engine ray needs Ray, which `pip install '.[cluster]'` in a clone of groundglass brings"
        ) from None
    return ray


# Nothing of Ray's own on the terminal, and above all not on standard output, where predictions go.
_QUIET: Mapping[str, str] = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_BACKEND_LOG_LEVEL": "error"}


_ALONE: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name the one way to keep Ray on the loopback interface on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""Settings of a Ray for nobody else. Without a token of its own it would leave one in the user's home."""


@cache
def _token() -> str:
    """One for this process: Ray remembers the first that it has seen."""
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Ray and its children read, for a while."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in settings if name in before})


def _start(ray: Any, workers: int, folder: str) -> None:
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise PredictionError(
            "Ray was imported before it could be told to keep to this machine; call ray.init() yourself"
        )
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=0,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            _temp_dir=folder,
        )
    except Exception as error:  # noqa: BLE001 - whatever Ray stumbles over
        raise PredictionError(f"Ray does not start on this machine ({_last_line(error)})") from None


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        _check_reachable(address)
    failed: list[str] = [f"it does not answer within {TIMEOUT:g} seconds"]

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
            failed.clear()
        except BaseException as error:  # noqa: BLE001 - whatever Ray stumbles over
            failed[:] = [_last_line(error)]

    # Ray has no time limit of its own for whoever listens but does not speak its language.
    thread = threading.Thread(target=join, name="groundglass-join", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if failed:
        raise PredictionError(f"{address}: no Ray cluster that can be joined ({failed[0]})")


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise PredictionError(
            f"{address}: no address of a Ray cluster; write host:port, ray://host:port or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT / 3).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PredictionError(f"{address}: no Ray cluster can be reached there ({reason})") from None


def _last_line(error: BaseException) -> str:
    """What an error says: the last line, where Ray's long ones name the cause."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)[:300]
