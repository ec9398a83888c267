"""From a run to a bundle: ONNX models, calibration, gate, self-test, measured figures, model card.

The gate's lessons: lung slices of the data set, phantoms, what is to be refused; and the fit to them.

The model card of a bundle: what it is, what it learned from, how good it is, where it ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import PARTS, Record, read_pixels
from groundglass.data.out_of_distribution import OTHER_PART, foreign_slices, phantom_slices, sicken, vary
from groundglass.errors import DataError, RunError
from groundglass.evaluation import log as ledger
from groundglass.evaluation.calibration import summary
from groundglass.evaluation.metrics import THRESHOLD
from groundglass.evaluation.part import Part, fingerprint, select_part
from groundglass.files import printable
from groundglass.imaging.crop import MUCH_LUNG, Preprocessing, find_lungs
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import Grey
from groundglass.inference.bundle import (
    CARD,
    MODELS,
    SELF_TEST,
    TRUST,
    Precision,
    save_arrays,
    self_test_arrays,
    trust_arrays,
    write_bundle,
)
from groundglass.inference.calibration import Calibration
from groundglass.inference.engine import INPUT, OUTPUTS, Engine, Outputs
from groundglass.inference.input_check import LUNG, Examples, InputCheck, appearance
from groundglass.inference.reference import Described, Reference, describe_slices, embed
from groundglass.training.onnx import CLOSE, OPSET, largest_difference, quantise, to_onnx
from groundglass.training.run import Run
from groundglass.training.samples import CroppedSet, load_cropped
from groundglass.training.trainer import now, versions

_PHANTOMS, _FEWEST_PHANTOMS = 450, 12
_ENOUGH, _MOST_LESION_FREE = 200, 2000
_BATCH = 32
# How much one slice of each source counts: the data set's own decide, variations and others support.
_OWN, _VARIED, _LESION_FREE, _PHANTOM = 2.0, 1.0, 0.6, 2.0


@dataclass(frozen=True)
class Lessons:
    """Pictures the gate learns from, described but for their embedding, which depends on the model.

    Attributes:
        cropped: uint8, shape (N, size, size).
        looks: float32, shape (N, count), as :func:`appearance` gives them.
        kind: what each picture is.
        group: whose it is, shape (N,).
        weight: of each lung slice, shape (N,).
        deciding: which lung slices decide on the limit: the data set's own as they are, shape (N,).
    """

    cropped: NDArray[np.uint8]
    looks: NDArray[np.float32]
    kind: tuple[str, ...]
    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    deciding: NDArray[np.bool_]


@dataclass(frozen=True)
class _Lesson:
    pixels: Grey
    kind: str
    group: str
    weight: float = 1.0
    deciding: bool = False


def gather_lessons(
    preprocessing: Preprocessing, slices: Sequence[Record], lesion_free: Sequence[Record] = (), seed: int = 0
) -> Lessons:
    """Read, invent, frame and describe everything the gate learns from; a minute for COVID-CT.

    Pictures are invented in full number for 200 slices or more, and for fewer slices in proportion.

    Args:
        preprocessing: the model's.
        slices: of the training part, lung slices all of them.
        lesion_free: further slices, cut from anywhere in a series; may be empty.
        seed: of everything random.

    Raises:
        ValueError: there is no slice.
        ImageError: one cannot be read.
    """
    if not slices:
        raise ValueError("the gate learns from the training part's slices, and there are none")
    effort = min(1.0, len(slices) / _ENOUGH)
    own = [_Lesson(read_pixels(record), LUNG, record.patient_id, _OWN, True) for record in slices]
    step = -(-len(lesion_free) // _MOST_LESION_FREE) or 1
    cut = [lesson for record in lesion_free[::step] if (lesson := _cut_lesson(record)) is not None]
    cropped, looks, known = [], [], []
    for lesson in chain(_lung_lessons(own, cut, seed, effort), _foreign_lessons(own, cut, seed, effort)):
        frame = preprocessing.apply(lesson.pixels)
        cropped.append(frame.pixels)
        looks.append(appearance(lesson.pixels, frame))
        # Without its pixels: thousands of pictures are gathered, and only the small copies are kept.
        known.append(replace(lesson, pixels=frame.pixels))
    return Lessons(
        np.stack(cropped),
        np.stack(looks),
        tuple(lesson.kind for lesson in known),
        np.array([zlib.crc32(lesson.group.encode()) for lesson in known], np.int64),
        np.array([lesson.weight for lesson in known]),
        np.array([lesson.deciding for lesson in known]),
    )


def fit_gate(lessons: Lessons, engine: Engine, preprocessing: Preprocessing) -> InputCheck:
    """Ask a model for the embeddings and fit the gate to them.

    Args:
        lessons: as :func:`gather_lessons` gathers them with the same preprocessing.
        engine: the model.
        preprocessing: whose normalisation is applied.
    """
    embeddings = [
        engine.run(preprocessing.normalise(lessons.cropped[start : start + _BATCH])).embedding
        for start in range(0, len(lessons.cropped), _BATCH)
    ]
    features = np.concatenate([lessons.looks, np.concatenate(embeddings)], axis=1)
    return InputCheck.fit(Examples(features, lessons.kind, lessons.group, lessons.weight), lessons.deciding)


def _cut_lesson(record: Record) -> _Lesson | None:
    """A lesion-free slice as what it is; None where that is in doubt."""
    pixels = read_pixels(record)
    lungs, found = find_lungs(pixels)
    # `groundglass data slices` names its files <series>_<index>.
    group = record.patient_id if record.patient_known else record.path.stem.rpartition("_")[0]
    if not found:
        return _Lesson(pixels, OTHER_PART, group)
    return _Lesson(pixels, LUNG, group, _LESION_FREE) if lungs.mean() >= MUCH_LUNG else None


def _lung_lessons(
    own: Sequence[_Lesson], cut: Sequence[_Lesson], seed: int, effort: float
) -> Iterator[_Lesson]:
    """Slices as they are and as other publications might show them, lesion-free slices, phantoms."""
    rng = np.random.default_rng([seed, 1])
    lungs = [lesson for lesson in cut if lesson.kind == LUNG]
    yield from own
    yield from lungs
    for lesson in own:
        yield replace(lesson, pixels=vary(lesson.pixels, rng), weight=_VARIED, deciding=False)
        sick = vary(sicken(lesson.pixels, rng), rng)
        yield replace(lesson, pixels=sick, weight=_VARIED, deciding=False)
    for index, lesson in enumerate(lungs):
        changed = vary(lesson.pixels, rng) if index % 2 else sicken(lesson.pixels, rng)
        yield replace(lesson, pixels=changed)
    for index, pixels in enumerate(phantom_slices(max(_FEWEST_PHANTOMS, round(effort * _PHANTOMS)), seed)):
        yield _Lesson(pixels, LUNG, f"phantom {index}", _PHANTOM)


def _foreign_lessons(
    own: Sequence[_Lesson], cut: Sequence[_Lesson], seed: int, effort: float
) -> Iterator[_Lesson]:
    yield from (lesson for lesson in cut if lesson.kind != LUNG)
    lungs = [lesson.pixels for lesson in [*own, *cut[::2]] if lesson.kind == LUNG]
    for index, (kind, pixels) in enumerate(foreign_slices(lungs, seed, effort)):
        yield _Lesson(pixels, kind, f"foreign {index}")


def render_card(fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> str:
    """The card as Markdown, every figure taken from what was measured at export.

    Args:
        fields: of ``bundle.json``.
        contents: the bundle's other files by name.
    """
    environment = Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=False,  # noqa: S701 - Markdown, of figures and names that export wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["interval"] = _interval
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.0%}"
    sizes = {name: len(content) for name, content in contents.items()}
    return environment.get_template("model_card.md.j2").render(**fields, sizes=sizes)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(measure: Mapping[str, float | None]) -> str:
    """``0.832 (0.781–0.880)``."""
    if measure["low"] is None or measure["high"] is None:
        return _figure(measure["value"])
    return f"{_figure(measure['value'])} ({_figure(measure['low'])}–{_figure(measure['high'])})"


LARGEST_LOSS = 0.005
"""An INT8 model whose AUC lies farther than this from that of fp32 is not written."""

LICENCE = (
    "Apache-2.0 for the weights. The images they were learned from remain under their publishers' terms. "
    "Research use only, no medical device."
)

_COVERAGE = 0.9
_COMPARED = 32
_BATCH_EXPORT = 32


@dataclass(frozen=True)
class Export:
    """What is asked for.

    Attributes:
        run: finished.
        output: the bundle, a folder or a name that ends in ``.zip``.
        data: the data set the run was trained on.
        lesion_free: folder of lesion-free slices, which the gate learns from as well.
        precisions: of the models that are written.
        name: of the model; network, split and seed unless given.
        cache: folder for cropped slices.
    """

    run: Run
    output: Path
    data: Path
    lesion_free: Path | None = None
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    name: str | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class _Judged:
    """One model and what it says of each part."""

    model: bytes
    engine: Engine
    outputs: Mapping[str, Outputs]
    calibration: Calibration
    gate: InputCheck
    reference: Reference | None
    metrics: Mapping[str, Any]


def export(job: Export, tell: Callable[[str], None]) -> tuple[Precision, ...]:
    """Write a bundle; the test part is judged once more, which the run's record of evaluations says.

    Args:
        job: what is asked for.
        tell: told of each step, in words.

    Returns:
        The precisions of the models in the bundle.

    Raises:
        RunError: the run is unfinished, its network cannot be exported faithfully, or INT8 alone was asked
            for and loses too much.
        DataError: the data are not those the run was trained on.
    """
    if not job.run.info.get("finished", False):
        raise RunError(f"{job.run.path}: the training has not finished; go on with --resume, then export")
    material = _load(job)
    tell("exporting to ONNX")
    fp32 = _export_network(job, material)
    judged: dict[Precision, _Judged] = {"fp32": _judge(fp32, material)}
    if "int8" in job.precisions:
        tell("quantising to INT8")
        images = {part: material.images(part) for part in ("train", "val")}
        judged["int8"] = _judge(quantise(fp32, images["train"], images["val"]), material)
    _record(job, material)
    kept = _kept(job, judged, tell)
    if judged["fp32"].reference is None:
        tell("too few validation slices of other patients: how far other data lie will not be known")
    _write(job, material, judged, kept)
    return kept


@dataclass(frozen=True)
class _Material:
    """The slices of the run's split, cropped."""

    run: Run
    parts: Mapping[str, Part]
    cropped: Mapping[str, CroppedSet]
    lessons: Lessons
    described: Mapping[str, Described]

    def images(self, name: str) -> NDArray[np.float32]:
        """Normalised, shape (N, size, size)."""
        return self.run.preprocessing.normalise(self.cropped[name].pixels)


def _load(job: Export) -> _Material:
    run, manifest = job.run, load_dataset(job.data)
    parts = {name: select_part(manifest, run.split_spec, name, run.seed) for name in PARTS}
    cropped = {
        name: load_cropped(part.records, run.preprocessing, 0.0, job.cache) for name, part in parts.items()
    }
    if set(cropped["train"].sha256) != set(run.info["training_sha256"]):
        raise DataError(f"{job.data}: not the data that {run.path} was trained on")
    lesion_free = () if job.lesion_free is None else load_dataset(job.lesion_free).records
    lessons = gather_lessons(run.preprocessing, parts["train"].records, lesion_free)
    described = {name: _describe(run, parts[name]) for name in ("train", "val")}
    return _Material(run, parts, cropped, lessons, described)


def _describe(run: Run, part: Part) -> Described:
    patients = [record.patient_id for record in part.records]
    return describe_slices(run.preprocessing, map(read_pixels, part.records), patients)


def _export_network(job: Export, material: _Material) -> bytes:
    network = job.run.network
    model = to_onnx(network, job.run.preprocessing.size)
    difference = largest_difference(network, Engine(model), material.images("val")[:_COMPARED])
    if difference > CLOSE:
        raise RunError(
            f"{job.run.path}: the exported network differs from PyTorch's by {difference:.2g} (limit {CLOSE})"
        )
    return model


def _judge(model: bytes, material: _Material) -> _Judged:
    """Ask a model about every slice and fit to it what depends on its outputs."""
    engine = Engine(model)
    outputs = {name: _outputs(engine, material.images(name)) for name in material.cropped}
    parts = material.parts
    calibration = Calibration.fit(outputs["val"].logit, parts["val"].label, _COVERAGE)
    gate = fit_gate(material.lessons, engine, material.run.preprocessing)
    embedded = {
        name: embed(engine, material.run.preprocessing, each) for name, each in material.described.items()
    }
    reference = Reference.fit(embedded["train"], embedded["val"])
    metrics = {name: summary(parts[name], outputs[name].logit, calibration) for name in ("val", "test")}
    return _Judged(model, engine, outputs, calibration, gate, reference, metrics)


def _outputs(engine: Engine, images: NDArray[np.float32]) -> Outputs:
    batches = [
        engine.run(images[start : start + _BATCH_EXPORT]) for start in range(0, len(images), _BATCH_EXPORT)
    ]
    return Outputs(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in OUTPUTS))


def _record(job: Export, material: _Material) -> None:
    part, run = material.parts["test"], job.run
    sha256 = fingerprint(part, material.cropped["test"].sha256)
    output = printable(job.output.absolute())
    entry = ledger.Entry(part.data, part.split, part.name, len(part.records), sha256, now(), output)
    ledger.record(run.path, entry)


def _kept(
    job: Export, judged: Mapping[Precision, _Judged], tell: Callable[[str], None]
) -> tuple[Precision, ...]:
    """The models that go into the bundle: an INT8 model only where it is as good as fp32."""
    if "int8" not in judged:
        return job.precisions
    auc = {precision: each.metrics["test"]["metrics"]["auc"]["value"] for precision, each in judged.items()}
    loss = abs(auc["int8"] - auc["fp32"])
    if loss <= LARGEST_LOSS:
        return job.precisions
    message = f"INT8 left out: its AUC on test differs by {loss:.4f} from fp32 (limit {LARGEST_LOSS})"
    kept = tuple(precision for precision in job.precisions if precision != "int8")
    if not kept:
        raise RunError(f"{job.run.path}: {message}; export fp32")
    tell(message)
    return kept


def _write(
    job: Export, material: _Material, judged: Mapping[Precision, _Judged], kept: tuple[Precision, ...]
) -> None:
    run = job.run
    cropped = run.preprocessing.apply(
        make_phantom(np.random.default_rng(0), severity=0.5, level=0.5).slice.pixels
    )
    image = run.preprocessing.normalise(cropped.pixels[None])
    contents = {
        TRUST: save_arrays(_trust({each: judged[each] for each in kept})),
        SELF_TEST: save_arrays(
            self_test_arrays(cropped.pixels, {each: judged[each].engine.run(image) for each in kept})
        ),
        **{MODELS[each]: judged[each].model for each in kept},
    }
    fields = _fields(job, material, judged, kept)
    contents[CARD] = render_card(fields, contents).encode()
    write_bundle(job.output, fields, contents)


def _trust(judged: Mapping[Precision, _Judged]) -> dict[str, NDArray[Any]]:
    references = {name: each.reference for name, each in judged.items()}
    return trust_arrays(
        {name: each.gate.as_arrays() for name, each in judged.items()},
        {name: each.as_arrays() for name, each in references.items() if each is not None},
    )


def _fields(
    job: Export, material: _Material, judged: Mapping[Precision, _Judged], kept: tuple[Precision, ...]
) -> dict[str, Any]:
    """Content of ``bundle.json`` but format, id and files."""
    run, info = job.run, job.run.info
    split = run.split_spec
    return {
        "name": job.name or f"{run.recipe.network.name}, split {split}, seed {run.seed}",
        "created": now(),
        "network": {
            **run.recipe.network.model_dump(mode="json"),
            "input_size": run.preprocessing.size,
            "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        },
        "preprocessing": asdict(run.preprocessing),
        "positive": "COVID",
        "threshold": THRESHOLD,
        "calibration": {
            each: {**asdict(judged[each].calibration), "slices": len(material.parts["val"].records)}
            for each in kept
        },
        "onnx": {"opset": OPSET, "input": INPUT, "outputs": list(OUTPUTS)},
        "training": {
            "recipe": run.recipe.name,
            "seed": run.seed,
            "split": split,
            "data": info.get("data"),
            "lesion_free": info.get("lesion_free"),
            "slices": {name: len(part.records) for name, part in material.parts.items()},
            "fingerprint": info.get("fingerprint"),
            "sha256": info["training_sha256"],
            "epochs": run.recipe.training.epochs,
            "seconds": info.get("training_seconds"),
            "versions": info.get("versions"),
        },
        "metrics": {each: dict(judged[each].metrics) for each in judged},
        "licence": LICENCE,
        "versions": versions(),
    }
