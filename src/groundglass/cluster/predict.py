"""The classifier of one process, multiplied: findings of many, in the order of their files, none twice."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from groundglass.cluster.alone import judge_alone
from groundglass.cluster.session import PATIENCE, import_ray, in_one_line, ray_session
from groundglass.cluster.units import FolderEnd, Step, Unit, steps
from groundglass.cluster.worker import Assignment, Ledger, Worker, bundle_contents
from groundglass.errors import ImageError, PredictionError
from groundglass.imaging.guard import without_stderr
from groundglass.imaging.read import no_image
from groundglass.imaging.slice import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.finding import Finding, Status

if TYPE_CHECKING:
    import pyarrow as pa

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
        address: of a Ray cluster, see :func:`groundglass.cluster.session.ray_session`; None starts a Ray on
            this machine for as long as the findings are drawn.
        keep_identifiers: findings say who is on a slice, where the file does.
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
    ) -> Iterator[Finding]:
        """Judge every slice of files, folders, zips and manifests.

        Findings come in the order of the paths, and within a folder in natural order of the files' names; the
        slices of a DICOM series are not sorted by their position. Otherwise they are those of
        ``Classifier.predict_all``. Nothing but paths and findings travels: workers read the files, which must
        have the same paths on all machines.

        Args:
            paths: files, folders, zips, members of zips (``archive.zip!member``), manifests (``.csv``).
            evidence: may be asked for, and is not given: pixels do not travel.
            skip: told file and frame, leaves a slice's finding out.
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
                for finding in run.judge(shard):
                    if skip is None or not skip(finding.file, finding.frame):
                        yield finding


class _Run:
    """One prediction, while Ray runs."""

    def __init__(self, classifier: RayClassifier, workers: int, contents: dict[str, bytes]) -> None:
        self._ray = import_ray()
        self._workers = workers
        self._bundle, self._keep = classifier.bundle, classifier.keep_identifiers
        zipped = self._bundle.path.is_file()
        self._assignment = Assignment(self._bundle.id, self._bundle.precision, zipped, self._keep)
        self._contents = self._ray.put(contents)
        self._lost = 0
        self._in_folder = 0

    def judge(self, shard: Sequence[Step]) -> Iterator[Finding]:
        """The findings of some steps, in their order."""
        with closing(self._ask(shard)) as stream:
            answers = Answers(stream)
            for number, step in enumerate(shard):
                if isinstance(step, Unit):
                    found = answers.take(number)
                    findings = self._alone(step) if found is None else found
                elif isinstance(step, FolderEnd):
                    empty = self._in_folder == 0 and not step.skipped
                    findings = [self._failed(no_image(step.path))] if empty else []
                else:
                    findings = [self._failed(step)]
                self._count(step, len(findings))
                yield from findings

    def _count(self, step: Step, findings: int) -> None:
        """Count what the present folder has given."""
        if isinstance(step, FolderEnd):
            self._in_folder = 0
        elif not isinstance(step, Unit) or step.of_folder:
            self._in_folder += findings

    def _failed(self, error: ImageError) -> Finding:
        patient = Patient() if self._keep else None
        return Finding(Status.FAILED, error.path, self._bundle.id, reason=error.reason, patient=patient)

    def _alone(self, unit: Unit) -> list[Finding]:
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


Answer = tuple[float, list[Finding] | None]
"""Number of a unit, and its findings; None where it should be judged elsewhere."""


class Answers:
    """Answers by the numbers of their units, which are asked for in rising order.

    Args:
        answers: may lack some, and have some twice or late.
    """

    def __init__(self, answers: Iterator[Answer]) -> None:
        self._answers = answers
        self._next: Answer = (-1, None)

    def take(self, number: int) -> list[Finding] | None:
        """The findings of a unit; None where there is no answer. What came twice is passed over."""
        while self._next[0] < number:
            self._next = next(self._answers, (math.inf, None))
        return self._next[1] if self._next[0] == number else None


def _answer(number: int, answer: dict[str, Any]) -> Answer:
    if "problem" in answer:
        raise PredictionError(answer["problem"])
    rows = answer.get("findings")
    return number, None if rows is None else [Finding.from_row(row) for row in rows]


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
