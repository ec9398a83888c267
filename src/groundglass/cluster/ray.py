"""The classifier of one process, multiplied: predictions of many, in the order of their files, none twice.

What is to be judged, cut into pieces for workers: paths only, listed as they are needed.

Ray, started on this machine for one prediction, or joined where a cluster runs.

What runs in each of Ray's workers: one classifier, loaded once, on one thread.

Files that took their worker down with them: judged here, in a process that may die of each.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST = 64
"""Files of a unit: a third of a second's work, so that the last worker does not keep the others waiting."""

# Each of these may hold a whole series, and is a unit by itself.
_OF_MANY_SLICES = (".zip", ".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr")


@dataclass(frozen=True)
class Unit:
    """Files that a worker classifies in one go, by their paths."""

    files: tuple[str, ...]


Step = Unit | ImageError


def steps(paths: Iterable[Path], skip: Callable[[str], bool] | None = None) -> Iterator[Step]:
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
            yield Unit(tuple(waiting))
            waiting = []
        if isinstance(item, ImageError):
            yield item
    if waiting:
        yield Unit(tuple(waiting))


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


PATIENCE = 20.0
"""Seconds after which a cluster that does not answer is given up."""

# Predictions are small: what Ray keeps in shared memory stays far below this.
_OBJECT_STORE = 128 * 2**20
# Ray puts sockets into its folder, whose paths may be about 100 characters long.
_LONGEST_FOLDER = 32


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
    local = address is None
    with (
        _environment({**_QUIET, **(_alone() if local else {})}),
        tempfile.TemporaryDirectory(
            prefix="groundglass-", dir=_short_folder(), ignore_cleanup_errors=True
        ) as folder,
    ):
        ray = import_ray()
        if ray.is_initialized():
            yield _room(ray, workers)
            return
        # Told of its log level, Ray tells of it.
        with without_stderr():
            if address is None:
                _start(ray, workers or usable_cores(), folder)
            else:
                _join(ray, address)
        try:
            yield _room(ray, workers)
        finally:
            ray.shutdown()


def import_ray() -> Any:
    """The module ``ray``, with Ray Data.

    Raises:
        PredictionError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra, and a second
        import ray.data  # noqa: PLC0415
    except ModuleNotFoundError:
        raise PredictionError(
            "--engine ray needs Ray, which comes with `pip install 'groundglass[cluster]'`"
        ) from None
    return ray


# Nothing of Ray's own on the terminal, and above all not on standard output, where predictions go.
_QUIET: Mapping[str, str] = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_BACKEND_LOG_LEVEL": "error"}


def _alone() -> dict[str, str]:
    """Settings of a Ray for nobody else."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Despite its name the one way to keep Ray on the loopback interface on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        # Without a token of its own Ray would leave one in the user's home.
        "RAY_AUTH_TOKEN": _token(),
    }


@cache
def _token() -> str:
    """One for this process: Ray remembers the first that it has seen."""
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Ray and its children read, for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short_folder() -> str | None:
    """Where temporary folders have short paths."""
    usual = tempfile.gettempdir()
    return "/tmp" if len(usual) > _LONGEST_FOLDER and Path("/tmp").is_dir() else usual  # noqa: S108


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
        raise PredictionError(f"Ray does not start on this machine ({in_one_line(error)})") from None


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        _knock(address)
    failed: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
        except BaseException as error:  # noqa: BLE001 - whatever Ray stumbles over, told by the caller
            failed.append(error)

    # Ray has no time limit of its own for whoever listens but does not speak its language.
    thread = threading.Thread(target=join, name="groundglass-join", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        raise PredictionError(f"{address}: no Ray cluster answers within {PATIENCE:g} seconds")
    if failed:
        raise PredictionError(f"{address}: no Ray cluster that can be joined ({in_one_line(failed[0])})")


def _knock(address: str) -> None:
    """Refuse an address where nobody listens, at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise PredictionError(
            f"{address}: no address of a Ray cluster; write host:port, ray://host:port or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE / 3).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PredictionError(f"{address}: no Ray cluster can be reached there ({reason})") from None


def _room(ray: Any, workers: int | None) -> int:
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < 1:
        raise PredictionError("the Ray cluster has no cores to work with")
    if workers is not None and workers > cores:
        raise PredictionError(f"--workers {workers} are more than the {cores} cores of the Ray cluster")
    return workers or cores


def in_one_line(error: BaseException) -> str:
    """What an error says: the last line, where Ray's long ones name the cause."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)[:300]


ATTEMPTS = 3
"""How often a unit may be begun: workers die of many things, but hardly three times at the same files."""


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to know; plain values, so that it can be sent to another machine.

    Attributes:
        bundle: id of the bundle, precision included.
        zipped: whether the bundle is a zip.
        keep_identifiers: predictions say who is on a slice.
        version: of groundglass.
    """

    bundle: str
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
            units: columns ``number`` and ``unit``, see :func:`groundglass.cluster.ray.unit_table`.

        Returns:
            Columns ``number`` and ``answer``: for each unit, in order, the text of a JSON object. It holds
            ``predictions``; or ``lost``, why the unit should be judged elsewhere; or ``problem``, why there is
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
            predictions = self._classifier.predict_files(map(Path, unit["files"]))
            return {"predictions": [prediction.as_row() for prediction in predictions]}
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
        bundle = Bundle.open(path, threads=1)
    if bundle.id != assignment.bundle:
        raise BundleError("the bundle was changed while the workers started; start again")
    return Classifier(bundle, threads=1, keep_identifiers=assignment.keep_identifiers)


def judge_alone(unit: Unit, bundle: Bundle, *, keep_identifiers: bool) -> Iterator[Prediction]:
    """Judge a unit in a process of its own; a file that kills it gets a prediction that says so.

    Args:
        unit: to be judged.
        bundle: opened from files that are still there.
        keep_identifiers: predictions say who is on a slice.

    Raises:
        PredictionError: the process cannot work at all.
    """
    rest = list(unit.files)
    while rest:
        task = {
            "bundle": str(bundle.path),
            "keep_identifiers": keep_identifiers,
            "files": rest,
        }
        answers, status, said = _run(task)
        for answer in answers:
            yield from map(Prediction.from_row, answer)
        rest = rest[len(answers) :]
        if status == _USER_ERROR:
            raise PredictionError(said)
        if rest:
            reason = f"reading it ended its process ({_death(status)})"
            patient = Patient() if keep_identifiers else None
            yield Prediction(Status.FAILED, rest.pop(0), bundle.id, reason=reason, patient=patient)


_USER_ERROR = 2


def _run(task: dict[str, object]) -> tuple[list[list[dict[str, object]]], int, str]:
    """Predictions of each file that was done, exit status, and the error that was told."""
    command = [sys.executable, "-m", "groundglass.cluster.ray"]
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
    """Judge the files named on standard input; for each a line with its predictions."""
    task = json.loads(sys.stdin.buffer.read())
    try:
        bundle = Bundle.open(task["bundle"], threads=1)
        classifier = Classifier(bundle, 1, keep_identifiers=task["keep_identifiers"])
        for file in task["files"]:
            predictions = classifier.predict_files([Path(file)])
            print(json.dumps([prediction.as_row() for prediction in predictions]), flush=True)  # noqa: T201 - its answer
    except GroundglassError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return _USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(_main())


Skip = Callable[[str, int | None], bool]
SkipFile = Callable[[str], bool]

SHARD = 4096
"""Units that Ray is told of at a time, some 260,000 files: bounds the memory that lists of paths take."""

_MOMENT = 1.0
"""Seconds that a thread of Ray's is given to end after an interruption."""

MOST_LOST = 16
"""Units that may take their workers down before these are taken to die of something else."""


@dataclass(frozen=True)
class RayClassifier:
    """Many classifiers that are asked as one.

    Attributes:
        bundle: opened and verified; its files must stay where they are.
        workers: processes of one thread each; one per core of the machine or cluster unless given.
        address: of a Ray cluster, see :func:`groundglass.cluster.ray.ray_session`; None starts a Ray on
            this machine for as long as the predictions are drawn.
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
        skip: Skip | None = None,
        skip_file: SkipFile | None = None,
    ) -> Iterator[Prediction]:
        """Judge every slice of files, folders, zips and manifests.

        Predictions are those of ``Classifier.predict_all``, in its order; this process lists the folders and reads
        the headers of DICOM files. Nothing but paths and predictions travels: workers read the files, which must
        have the same paths on all machines.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: may be asked for, and is not given: pixels do not travel.
            skip: told file and frame, leaves a slice's prediction out.
            skip_file: told a file's name, leaves it out unread.

        Raises:
            PredictionError: Ray is not installed, cannot be started or joined, or workers cannot work.
            BundleError: the bundle's files are gone or changed.
            DataError: a manifest is damaged.
        """
        contents = bundle_contents(self.bundle)
        with ray_session(self.address, self.workers) as workers:
            run = _Run(self, workers, contents)
            for shard in _shards(steps(paths, skip_file)):
                for prediction in run.judge(shard):
                    if skip is None or not skip(prediction.file, prediction.frame):
                        yield prediction


class _Run:
    """One prediction, while Ray runs."""

    def __init__(self, classifier: RayClassifier, workers: int, contents: dict[str, bytes]) -> None:
        self._ray = import_ray()
        self._workers = workers
        self._bundle, self._keep = classifier.bundle, classifier.keep_identifiers
        zipped = self._bundle.path.is_file()
        self._assignment = Assignment(self._bundle.id, zipped, self._keep)
        self._contents = self._ray.put(contents)
        self._lost = 0

    def judge(self, shard: Sequence[Step]) -> Iterator[Prediction]:
        """The predictions of some steps, in their order."""
        with closing(self._ask(shard)) as stream:
            answers = Answers(stream)
            for number, step in enumerate(shard):
                if isinstance(step, Unit):
                    found = answers.take(number)
                    predictions = self._alone(step) if found is None else found
                else:
                    predictions = [self._failed(step)]
                yield from predictions

    def _failed(self, error: ImageError) -> Prediction:
        patient = Patient() if self._keep else None
        return Prediction(Status.FAILED, error.path, self._bundle.id, reason=error.reason, patient=patient)

    def _alone(self, unit: Unit) -> list[Prediction]:
        self._lost += 1
        if self._lost > MOST_LOST:
            raise PredictionError(
                f"workers died of {self._lost} groups of files, the last one from {unit.files[0]}; have they "
                "enough memory? (fewer --workers need less)"
            )
        return list(judge_alone(unit, self._bundle, keep_identifiers=self._keep))

    def _ask(self, shard: Sequence[Step]) -> Generator[Answer, None, None]:
        """What workers say of a shard's units, in their order."""
        units = [unit_table(number, step) for number, step in enumerate(shard) if isinstance(step, Unit)]
        if not units:
            return
        data = self._ray.data
        ledger = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
        answers = data.from_arrow(units).map_batches(
            Worker,
            fn_constructor_args=(self._assignment, self._contents, ledger),
            # Ray replaces workers that die, and gives what they had begun to others.
            compute=data.ActorPoolStrategy(size=min(self._workers, len(units))),
            num_cpus=1,
            batch_size=1,
            batch_format="pyarrow",
        )
        answers.context.execution_options.preserve_order = True
        answers.context.enable_progress_bars = False
        # A thread that prefetches may ask Ray for more after its end, and Ray ends the process for that.
        tables = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with _told_shortly(self._ray), _ending_with_this(), closing(tables):
            # Ray warns of what it does itself when the workers start.
            with without_stderr():
                first = next(tables, None)
            for table in chain(() if first is None else (first,), tables):
                for row in table.to_pylist():
                    yield _answer(row["number"], json.loads(row["answer"]))


Answer = tuple[float, list[Prediction] | None]
"""Number of a unit, and its predictions; None where it should be judged elsewhere."""


class Answers:
    """Answers by the numbers of their units, which are asked for in rising order.

    Args:
        answers: may lack some, and have some twice or late.
    """

    def __init__(self, answers: Iterator[Answer]) -> None:
        self._answers = answers
        self._next: Answer = (-1, None)

    def take(self, number: int) -> list[Prediction] | None:
        """The predictions of a unit; None where there is no answer. What came twice is passed over."""
        while self._next[0] < number:
            self._next = next(self._answers, (math.inf, None))
        return self._next[1] if self._next[0] == number else None


def _answer(number: int, answer: dict[str, Any]) -> Answer:
    if "problem" in answer:
        raise PredictionError(answer["problem"])
    rows = answer.get("predictions")
    return number, None if rows is None else [Prediction.from_row(row) for row in rows]


def unit_table(number: int, unit: Unit) -> pa.Table:
    """A unit as a table of one row, as it travels to a worker: ``number``, and ``unit``, a JSON object."""
    import pyarrow as pa  # noqa: PLC0415 - comes with Ray

    return pa.table({"number": [number], "unit": [json.dumps(asdict(unit))]})


def _shards(items: Iterator[Step]) -> Iterator[list[Step]]:
    while shard := list(islice(items, SHARD)):
        yield shard


@contextmanager
def _told_shortly(ray: Any) -> Iterator[None]:
    """Turn what goes wrong within Ray into one line, and keep its log off the terminal."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except ray.exceptions.RayError as error:
        raise PredictionError(f"the workers cannot go on ({in_one_line(error)})") from None
    finally:
        logger.setLevel(level)


@contextmanager
def _ending_with_this() -> Iterator[None]:
    """End what Ray Data goes on with after an interruption: Ray ends a process that asks for more later."""
    before = set(threading.enumerate())
    try:
        yield
    except BaseException:
        _end_executors(before)
        # What else Ray Data had begun may be in the middle of a question to Ray.
        for thread in set(threading.enumerate()) - before:
            thread.join(_MOMENT)
        raise
    _end_executors(before)


def _end_executors(before: set[threading.Thread]) -> None:
    """End the executors among the threads that were not there before."""
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, _Executor):
            thread.shutdown(force=True)
            thread.join(PATIENCE)


@runtime_checkable
class _Executor(Protocol):
    """The thread in which Ray Data hands out work."""

    def shutdown(self, force: bool) -> None:
        """End it."""

    def join(self, timeout: float) -> None:
        """Wait until it has ended."""
