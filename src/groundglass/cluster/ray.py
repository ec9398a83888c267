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
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from groundglass import __version__
from groundglass.errors import BundleError, GroundglassError, ImageError, PredictionError
from groundglass.files import usable_cores
from groundglass.imaging.read import Scaled, images_within
from groundglass.imaging.slice import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier, Skip
from groundglass.inference.inputs import named_by
from groundglass.inference.prediction import Prediction, Status

LARGEST = 64  # files of a unit: a third of a second's work, so that the last worker does not keep the others waiting
MOST_LOST = 16  # units that may take their workers down before these are taken to die of something else
TIMEOUT = 20.0  # seconds after which a cluster that does not answer is given up
# Each of these may hold a whole series, and is a unit by itself.
_OF_MANY_SLICES = (".zip", ".nii", ".nii.gz", ".mhd", ".mha", ".nrrd")
# Of a unit whose worker died: workers die of many things, but hardly three times at the same files.
_RETRIES = 2
_AHEAD = 4  # units for each worker that are under way or waiting
# Nothing of Ray's own on the terminal, and above all not on standard output, where predictions go.
_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_BACKEND_LOG_LEVEL": "error"}
_SILENT = {"log_to_driver": False, "logging_level": "CRITICAL"}
# Without a token of its own Ray would leave one in the user's home (it remembers the first of this process);
# despite its name the last is the one way to keep it on the loopback interface on Linux too.
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
# Predictions are small: what Ray keeps in shared memory stays far below this.
_LOCAL = {"address": "local", "num_gpus": 0, "include_dashboard": False, "object_store_memory": 128 * 2**20}

# Paths of files that a worker classifies in one go, and predictions of those that cannot be read.
Unit = tuple[str | Scaled | Prediction, ...]
# The bundle's path and id, whether to keep identifiers, ONNX Runtime's providers, version, folder of relative paths.
_Job = tuple[str, str, bool, tuple[str, ...], str, str]


@dataclass(frozen=True)
class RayClassifier:
    """Many classifiers that are used as one."""

    bundle: Bundle  # opened and verified; workers find it, as all files, under the same path
    workers: int | None = None  # processes of one thread each; None: one per core
    address: str | None = None  # of a Ray cluster, see :func:`ray_session`; None starts one here
    keep_identifiers: bool = False  # predictions say who is on a slice, where the file does

    def predict_all(
        self, paths: Iterable[Path], *, evidence: bool = False, skip: Skip = lambda *_: False
    ) -> Generator[Prediction, None, None]:
        """Classify every slice of files, folders, zips and manifests.

        Arguments and predictions, in their order, are those of ``Classifier.predict_all``, but ``evidence``
        is not given: nothing but paths and predictions travels. This process lists folders and manifests.

        Raises:
            PredictionError: Ray is not installed, cannot be started or joined, or workers cannot work.
            DataError: a manifest is damaged.
        """
        with ray_session(self.address, self.workers) as workers:
            for prediction in _predictions(self, self.units(paths, skip), workers * _AHEAD):
                if not skip(prediction.file, prediction.frame):
                    yield prediction

    def units(self, paths: Iterable[Path], skip: Skip = lambda *_: False) -> Iterator[Unit]:
        """Units in the order in which one process reads the paths, see :meth:`predict_all`."""
        waiting: list[str | Scaled | Prediction] = []
        for item in chain.from_iterable(self._listed(path, skip) for path in paths):
            waiting.append(item)
            alone = not isinstance(item, Prediction) and str(item).lower().endswith(_OF_MANY_SLICES)
            if alone or len(waiting) >= LARGEST:
                yield tuple(waiting)
                waiting.clear()
        if waiting:
            yield tuple(waiting)

    def _listed(self, path: Path, skip: Skip) -> Iterator[str | Scaled | Prediction]:
        if not path.is_dir():
            files = (file if isinstance(file, Scaled) else str(file) for file in named_by(path))
            yield from (file for file in files if not skip(str(file), None))
            return
        broken: list[ImageError] = []
        for source, _ in images_within(
            path, on_error=broken.append, skip=lambda name: skip(name, None), open_archives=False
        ):
            yield from map(self.failed, broken)
            yield source.name
            broken.clear()
        yield from map(self.failed, broken)

    def failed(self, error: ImageError) -> Prediction:
        """The prediction of a file that cannot be read."""
        patient = Patient() if self.keep_identifiers else None
        return Prediction(Status.FAILED, error.path, self.bundle.id, reason=error.reason, patient=patient)


def _predictions(classifier: RayClassifier, units: Iterator[Unit], ahead: int) -> Iterator[Prediction]:
    """What is predicted of units, in their order; at most so many are under way.

    Where a unit took its workers down, it is predicted file by file: the one that does so is named.
    """
    ray, bundle, lost = _import_ray(), classifier.bundle, 0
    own = (classifier.keep_identifiers, bundle.providers, __version__, os.getcwd())
    job = (str(bundle.path.absolute()), bundle.id, *own)
    # A process that classifies one unit at a time, and is kept for the next.
    task = ray.remote(num_cpus=1)(_classify)

    def begin(unit: Unit, retries: int) -> Any:
        return task.options(max_retries=retries).remote(job, unit)

    def taken(unit: Unit, begun: Any) -> Iterator[Prediction]:
        nonlocal lost
        if (predicted := _result(ray, begun)) is not None:
            yield from predicted
            return
        lost += 1
        if lost > MOST_LOST:
            raise PredictionError(f"workers died of {lost} groups of files; have they enough memory?")
        for item in unit:
            known = [item] if isinstance(item, Prediction) else _result(ray, begin((item,), 0))
            deadly = ImageError(str(item), "reading it ended its process")
            yield from [classifier.failed(deadly)] if known is None else known

    under_way: deque[tuple[Unit, Any]] = deque()
    try:
        for unit in units:
            under_way.append((unit, begin(unit, _RETRIES)))
            if len(under_way) > ahead:
                yield from taken(*under_way.popleft())
        while under_way:
            yield from taken(*under_way.popleft())
    finally:
        for _, begun in under_way:
            ray.cancel(begun, force=True)


def _result(ray: Any, begun: Any) -> list[Prediction] | None:
    """What a task predicted; None where its process died. Raises what makes it useless to continue."""
    errors = ray.exceptions
    try:
        answer = ray.get(begun)
    except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.RayTaskError) as error:
        if "ModuleNotFoundError" in str(error):
            raise PredictionError(f"the workers lack what groundglass needs ({_last_line(error)})") from None
        return None
    except errors.RayError as error:
        raise PredictionError(f"the workers cannot continue ({_last_line(error)})") from None
    if isinstance(answer, str):
        raise PredictionError(answer)
    return list(answer)


def _classify(job: _Job, unit: Unit) -> list[Prediction] | str:
    """Runs in a worker: a unit's predictions, or why there is no use in continuing."""
    try:
        classifier = _load(job)
        read = ([item] if isinstance(item, Prediction) else classifier.read_files([item]) for item in unit)
        return [classifier.classify(each) for each in chain.from_iterable(read)]
    except GroundglassError as error:
        return str(error)


@lru_cache(maxsize=1)
def _load(job: _Job) -> Classifier:
    import cv2  # noqa: PLC0415 - not needed where work is only sent from

    bundle_path, bundle_id, keep_identifiers, providers, version, folder = job
    with suppress(OSError):  # where it is not there, relative paths lead nowhere
        os.chdir(folder)
    cv2.setNumThreads(1)
    if version != __version__:
        raise PredictionError(f"a worker has groundglass {__version__}, not {version}; install one version")
    # The installed bundle may lie elsewhere on another machine.
    path = Path(bundle_path)
    bundle = Bundle.open(path if path.exists() else None, threads=1, providers=providers)
    if bundle.id != bundle_id:
        raise BundleError(f"{path}: changed, or not there where the workers run; put the same bundle there")
    return Classifier(bundle, keep_identifiers=keep_identifiers)


@contextmanager
def ray_session(address: str | None, workers: int | None) -> Iterator[int]:
    """Ray, ready to be used in the block; gives the number of workers that find room.

    A Ray that this starts listens on the loopback interface only, asks for a token, has no dashboard, reports
    nothing to anybody and is gone, with its files, after the block. One of this process is used as it is.

    Args:
        address: of a cluster: ``host:port``, ``auto`` or ``ray://host:port``; None starts one here.
        workers: requested; as many as there are cores unless given.

    Raises:
        PredictionError: Ray is not installed, does not start, or no cluster answers.
    """
    # Ray puts sockets into its folder, whose paths may be about 100 characters long.
    short = "/tmp" if len(tempfile.gettempdir()) > 32 else None  # noqa: S108
    settings = _QUIET if address else _QUIET | _ALONE
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with tempfile.TemporaryDirectory("", "groundglass-", short, ignore_cleanup_errors=True) as folder:
            ray = _import_ray()
            started = not ray.is_initialized()
            if started:
                _join(ray, address) if address else _start(ray, workers or usable_cores(), folder)
            try:
                cores, wanted = int(ray.cluster_resources().get("CPU", 0)), workers or 1
                if cores < wanted:
                    raise PredictionError(f"--workers {wanted}: the Ray cluster has {cores} cores only")
                yield workers or cores
            finally:
                if started:
                    ray.shutdown()
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ.update({} if value is None else {name: value})


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra, and a second
    except ModuleNotFoundError:
        raise PredictionError("--engine ray needs Ray: run `pip install '.[cluster]'` in a clone") from None
    return ray


def _start(ray: Any, workers: int, folder: str) -> None:
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise PredictionError("Ray was imported before it was kept to this machine; call ray.init() first")
    try:
        ray.init(**_LOCAL, **_SILENT, num_cpus=workers, _temp_dir=folder)
    except Exception as error:  # noqa: BLE001 - whatever Ray stumbles over
        raise PredictionError(f"Ray does not start on this machine ({_last_line(error)})") from None


def _join(ray: Any, address: str) -> None:
    failed = [f"it does not answer within {TIMEOUT:g} seconds"]

    def join() -> None:
        try:
            if address != "auto":  # Ray would wait long for where nobody listens
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT / 3).close()
            ray.init(address=address, **_SILENT)
            failed.clear()
        except BaseException as error:  # noqa: BLE001 - whatever Ray stumbles over
            failed[:] = [_last_line(error)]

    # Ray has no time limit of its own for whoever listens but does not speak its language.
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if failed:
        ways = "use host:port, ray://host:port or auto"
        raise PredictionError(f"{address}: no Ray cluster ({failed[0]}); {ways}")


def _last_line(error: BaseException) -> str:
    """The last line of an error, where Ray's long ones name the cause."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)[:300]
