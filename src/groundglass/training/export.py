"""From a run to a bundle: ONNX model, calibration, input check, self-test, measured figures, model card."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import PARTS, Record, read_pixels
from groundglass.data.out_of_distribution import (
    out_of_distribution_examples,
    paint_disease,
    phantom_slices,
    vary,
)
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RunError
from groundglass.evaluation.calibration import series_rule, summary
from groundglass.evaluation.part import Part, fingerprint, record_evaluation, select_part
from groundglass.files import name_some
from groundglass.imaging.crop import MUCH_LUNG, Preprocessing
from groundglass.imaging.lungs import LungSegmenter, open_segmenter
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import Grey
from groundglass.inference.bundle import (
    CARD,
    INPUT,
    LUNGS,
    MODEL,
    REFERENCE,
    SELF_TEST,
    Engine,
    Outputs,
    Precision,
    save_arrays,
    self_test,
    write_bundle,
)
from groundglass.inference.calibration import Calibration
from groundglass.inference.input_check import LUNG, OTHER_PART, InputCheck, appearance
from groundglass.inference.reference import EmbeddingReference
from groundglass.training.input_check_fit import Examples, fit_input_check
from groundglass.training.onnx import (
    CALIBRATING,
    CLOSE,
    OPSET,
    described,
    largest_difference,
    outputs_of,
    quantise,
    to_onnx,
)
from groundglass.training.run import Run
from groundglass.training.samples import CroppedSet, cache_folder, load_cropped
from groundglass.training.trainer import check_writable, now, versions

LARGEST_LOSS = 0.005
"""INT8 is chosen unless its validation AUC is lower than that of fp32 by more than this."""

_COVERAGE = 0.9
_COMPARED = 32
_BATCH = 32

# The input check's examples: pictures are synthesised in full number for _ENOUGH slices or more.
_PHANTOMS, _FEWEST_PHANTOMS = 450, 12
_ENOUGH, _MOST_OWN, _MOST_LESION_FREE = 400, 600, 600
# How much one slice of each source counts: the data set's own decide, variations and others support.
_OWN, _VARIED, _LESION_FREE, _PHANTOM = 2.0, 1.0, 0.6, 2.0


@dataclass(frozen=True)
class Export:
    """One export.

    Attributes:
        run: finished.
        output: the bundle, a folder or a name that ends in ``.zip``.
        data: the data sets the run was trained on.
        lesion_free: folder of lesion-free slices, which the input check learns from as well.
        precision: of the model; None for INT8 where it is as good as fp32 on the validation part.
        name: of the model; network, split and seed unless given.
        cache: folder for cropped slices.
        lungs: ONNX model of the lung fields that goes into the bundle and with which everything is measured; None
            for the one of the training.
        map_label: labels of other names in the data; see :func:`groundglass.data.load.load_pool`.
    """

    run: Run
    output: Path
    data: tuple[Path, ...]
    lesion_free: Path | None = None
    precision: Precision | None = None
    name: str | None = None
    cache: Path | None = None
    lungs: Path | None = None
    map_label: tuple[str, ...] = ()

    @cached_property
    def segmenter(self) -> LungSegmenter:
        """Finds the lungs."""
        return self.run.lungs if self.lungs is None else open_segmenter(self.lungs)


@dataclass(frozen=True)
class CheckExamples:
    """Pictures the input check learns from, described but for their embedding, which depends on the model.

    Attributes:
        cropped: uint8, shape (N, size, size).
        appearance: float32, shape (N, count).
        kind: what each picture is.
        group: whose it is, shape (N,).
        weight: of each lung slice, shape (N,).
        deciding: which lung slices decide on the limit: the data set's own as they are, shape (N,).
    """

    cropped: NDArray[np.uint8]
    appearance: NDArray[np.float32]
    kind: tuple[str, ...]
    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    deciding: NDArray[np.bool_]


@dataclass(frozen=True)
class _Slices:
    """The slices of the run's split, cropped."""

    run: Run
    parts: Mapping[str, Part]
    cropped: Mapping[str, CroppedSet]

    def images(self, name: str, at_most: int | None = None) -> NDArray[np.float32]:
        """Normalised, shape (N, size, size); of more than ``at_most`` slices so many, drawn."""
        pixels = self.cropped[name].pixels
        if at_most is not None:
            pixels = pixels[np.random.default_rng(0).permutation(len(pixels))[:at_most]]
        return self.run.preprocessing.normalise(pixels)


def export(job: Export, tell: Callable[[str], None]) -> Precision:
    """Write a bundle; a test part is evaluated once more, which the run's evaluation log records.

    Args:
        job: run, data and output.
        tell: called with each step, in words.

    Returns:
        The precision of the model in the bundle.

    Raises:
        RunError: the run is unfinished, its network cannot be exported faithfully, INT8 was asked for and loses
            too much, or the bundle cannot be written.
        DataError: the data are not those the run was trained on.
    """
    run = job.run
    if not run.info.get("finished", False):
        raise RunError(f"{run.path}: the training has not finished; resume it with --resume, then export")
    check_writable(job.output, "--output")
    check_writable(job.cache or cache_folder(), "--cache")
    slices = _load(job, tell)
    lesion_free = () if job.lesion_free is None else load_dataset(job.lesion_free, job.map_label).records
    tell("gathering pictures that the input check is to accept and to refuse")
    examples = gather_examples(run.preprocessing, job.segmenter, slices.parts["train"].records, lesion_free)
    tell("exporting to ONNX")
    model, precision, auc = _choose(job, slices, tell)
    engine = Engine(model)
    tell("predicting and measuring")
    normalise = run.preprocessing.normalise
    outputs = {name: _run(engine, each.pixels, normalise) for name, each in slices.cropped.items()}
    calibration = Calibration.fit(outputs["val"].logit, slices.parts["val"].label, _COVERAGE)
    check = fit_check(examples, engine, run.preprocessing)
    reference = _reference(slices, outputs)
    if reference is None:
        tell("too few validation slices of other patients: how far other data lie will not be known")
    if "test" in slices.parts:
        part = slices.parts["test"]
        sha256 = fingerprint(part, slices.cropped["test"].sha256)
        record_evaluation(run.path, part, sha256, now(), job.output)
    fields = {
        **_fields(job, slices),
        "precision": precision,
        "calibration": calibration.model_dump(),
        "series": _series_rule(slices.parts["val"], outputs["val"].logit, calibration),
        "metrics": {
            name: summary(part, outputs[name].logit, calibration)
            | {"by_source": _by_source(part, outputs[name].logit, calibration)}
            for name, part in slices.parts.items()
            if name != "train"
        },
        "validation_auc": auc,
    }
    phantom = make_phantom(np.random.default_rng(0), severity=0.5, level=0.5).slice.pixels
    contents = {
        MODEL: described(model, run.preprocessing, calibration),
        REFERENCE: save_arrays({**check.as_arrays(), **(reference.as_arrays() if reference else {})}),
        LUNGS: job.segmenter.model,
        SELF_TEST: self_test(engine, job.segmenter, run.preprocessing, phantom),
    }
    contents[CARD] = render_card(fields, contents).encode()
    write_bundle(job.output, fields, contents)
    return precision


def gather_examples(
    preprocessing: Preprocessing,
    lungs: LungSegmenter,
    slices: Sequence[Record],
    lesion_free: Sequence[Record] = (),
    seed: int = 0,
) -> CheckExamples:
    """Read, synthesise, crop and describe everything the input check learns from; a minute for COVID-CT.

    Pictures are synthesised in full number for 200 slices or more, and for fewer slices in proportion.

    Args:
        preprocessing: the model's.
        lungs: finds the lungs.
        slices: of the training part, lung slices all of them.
        lesion_free: further slices, cut from anywhere in a series; may be empty.
        seed: of everything random.

    Raises:
        ValueError: there is no slice.
        ImageError: one cannot be read.
    """
    if not slices:
        raise ValueError("the input check learns from the training part's slices, and there are none")
    effort = min(1.0, len(slices) / _ENOUGH)
    chosen = _spread(slices, np.random.default_rng([seed, 0]))
    own = [_Picture(read_pixels(record), LUNG, record.patient_id, _OWN, True) for record in chosen]
    step = -(-len(lesion_free) // _MOST_LESION_FREE) or 1  # of a folder sorted by series
    cut = [picture for record in lesion_free[::step] if (picture := _lesion_free(record, lungs)) is not None]
    described, known = [], []
    for picture in chain(_lung_pictures(own, cut, seed, effort), _other_pictures(own, cut, seed, effort)):
        cropped = preprocessing.apply(picture.pixels, lungs(picture.pixels))
        described.append(appearance(picture.pixels, cropped))
        # Thousands of pictures are gathered, and only the small copies are kept.
        known.append(replace(picture, pixels=cropped.pixels))
    return CheckExamples(
        np.stack([picture.pixels for picture in known]),
        np.stack(described),
        tuple(picture.kind for picture in known),
        np.array([zlib.crc32(picture.group.encode()) for picture in known], np.int64),
        np.array([picture.weight for picture in known]),
        np.array([picture.deciding for picture in known]),
    )


def _spread(slices: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """At most 600 slices, of each source as many as of any other, as far as it has them."""
    turn: Counter[str] = Counter()
    ordered = []
    for index in rng.permutation(len(slices)):
        turn[slices[index].hospital] += 1
        ordered.append((turn[slices[index].hospital], index))
    return [slices[index] for _, index in sorted(ordered)[:_MOST_OWN]]


def fit_check(examples: CheckExamples, engine: Engine, preprocessing: Preprocessing) -> InputCheck:
    """Have a model embed the examples and fit the input check to them.

    Args:
        examples: gathered with the same preprocessing.
        engine: the model.
        preprocessing: whose normalisation is applied.
    """
    embedding = _run(engine, examples.cropped, preprocessing.normalise).embedding
    features = np.concatenate([examples.appearance, embedding], axis=1)
    described = Examples(features, examples.kind, examples.group, examples.weight)
    return fit_input_check(described, examples.deciding)


def render_card(fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> str:
    """The model card as Markdown, every figure taken from the bundle's own data.

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
    uncertain = Calibration(**fields["calibration"]).uncertain
    return environment.get_template("model_card.md.j2").render(**fields, sizes=sizes, uncertain=uncertain)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(measure: Mapping[str, float | None]) -> str:
    """``0.832 (0.781–0.880)``."""
    if measure["low"] is None or measure["high"] is None:
        return _figure(measure["value"])
    return f"{_figure(measure['value'])} ({_figure(measure['low'])}–{_figure(measure['high'])})"


def _load(job: Export, tell: Callable[[str], None]) -> _Slices:
    """The parts that the split has; folds of the official training part, for instance, have no test part."""
    run = job.run
    manifest = load_pool(job.data, job.map_label).without(run.recipe.sampling.leave_out)
    split = make_split(manifest, run.split_spec, run.seed, allow_overlap=True)
    parts = {
        name: select_part(manifest, run.split_spec, name, run.seed)
        for name in PARTS
        if name != "test" or split.parts.get(name)
    }
    if "test" in parts:
        parts["test"] = parts["test"].of_both_labels()
    tell(f"cropping {sum(len(part.records) for part in parts.values())} slices")
    cropped = {
        name: load_cropped(part.records, run.preprocessing, 0.0, job.cache, job.segmenter)
        for name, part in parts.items()
    }
    if not set(run.info["training_sha256"]) <= set(cropped["train"].sha256):
        raise DataError(
            f"{name_some([str(path) for path in job.data])}: not the data that {run.path} was trained on"
        )
    return _Slices(run, parts, cropped)


def _choose(
    job: Export, slices: _Slices, tell: Callable[[str], None]
) -> tuple[bytes, Precision, dict[Precision, float]]:
    """The model, its precision, and the validation AUC of each precision that was compared."""
    run, images, label = job.run, slices.images("val"), slices.parts["val"].label
    fp32 = to_onnx(run.network, run.preprocessing.size)
    engine, pixels = Engine(fp32), slices.cropped["val"].pixels
    difference = largest_difference(run.network, engine, images[:_COMPARED])
    if difference > CLOSE:
        raise RunError(
            f"{run.path}: the exported network differs from PyTorch's by {difference:.2g} (limit {CLOSE})"
        )
    normalise = run.preprocessing.normalise
    auc: dict[Precision, float] = {"fp32": _auc(label, _run(engine, pixels, normalise).logit)}
    if job.precision == "fp32":
        return fp32, "fp32", auc
    tell("quantising to INT8")
    int8 = quantise(fp32, slices.images("train", CALIBRATING), images)
    auc["int8"] = _auc(label, _run(Engine(int8), pixels, normalise).logit)
    loss = auc["fp32"] - auc["int8"]
    if loss <= LARGEST_LOSS:
        return int8, "int8", auc
    message = f"INT8 loses {loss:.4f} of the validation AUC (limit {LARGEST_LOSS})"
    if job.precision == "int8":
        raise RunError(f"{run.path}: {message}; export fp32")
    tell(f"{message}; fp32 is written")
    return fp32, "fp32", auc


def _auc(label: NDArray[np.int8], logit: NDArray[np.float32]) -> float:
    """Area under the ROC curve; export needs both labels in the validation part anyway, to calibrate."""
    return float(roc_auc_score(label, logit))


def _run(
    engine: Engine,
    pixels: NDArray[np.uint8],
    normalise: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> Outputs:
    """Logits and embeddings; slices are normalised batch by batch, as floating point takes four times their memory."""
    batches = [
        engine.run(normalise(pixels[start : start + _BATCH])) for start in range(0, len(pixels), _BATCH)
    ]
    logit, embedding = (
        np.concatenate([getattr(each, name) for each in batches]) for name in ("logit", "embedding")
    )
    return Outputs(logit, embedding)


def _series_rule(part: Part, logit: NDArray[np.float32], calibration: Calibration) -> dict[str, Any] | None:
    probability = np.array([calibration.probability(float(value)) for value in logit])
    fitted = series_rule(part, probability, _COVERAGE)
    return fitted and {**fitted[0].model_dump(), **fitted[1]}


def _reference(slices: _Slices, outputs: Mapping[str, Outputs]) -> EmbeddingReference | None:
    """Fitted to the training part, and to the validation slices of patients that are not in it."""
    other = ~np.isin(slices.parts["val"].patient, slices.parts["train"].patient)
    return EmbeddingReference.fit(outputs["train"].embedding, outputs["val"].embedding[other])


def _by_source(
    part: Part, logit: NDArray[np.float32], calibration: Calibration
) -> dict[str, dict[str, dict[str, int]]]:
    """By source and true label: how many slices got each label."""
    table: dict[str, dict[str, Counter[str]]] = {}
    for record, each in zip(part.records, logit, strict=True):
        label = calibration.label(calibration.prediction_set(calibration.probability(float(each))))
        source = table.setdefault(record.hospital, {})
        source.setdefault(str(record.label and record.label.value), Counter())[label] += 1
    return {name: {key: dict(each) for key, each in table[name].items()} for name in sorted(table)}


def _fields(job: Export, slices: _Slices) -> dict[str, Any]:
    """What ``bundle.json`` says of the run."""
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
        "onnx": {"opset": OPSET, "input": INPUT, "outputs": outputs_of(run.network)},
        "training": {
            "recipe": run.recipe.name,
            "seed": run.seed,
            "split": split,
            "data": info.get("data"),
            "sources": info.get("sources"),
            "lungs": {"sha256": job.segmenter.sha256, **job.segmenter.notes},
            "lesion_free": info.get("lesion_free"),
            "slices": {name: len(part.records) for name, part in slices.parts.items()},
            "one_label": _one_label(slices.parts["train"]),
            "fingerprint": info.get("fingerprint"),
            "sha256": info["training_sha256"],
            "epochs": run.recipe.training.epochs,
            "seconds": info.get("training_seconds"),
            "versions": info.get("versions"),
        },
        "licence": "Research use only, no medical device. The weights were learned from "
        f"{', '.join(info.get('sources') or info['data'])}: what these slices' owners allow holds for the weights.",
        "versions": versions(),
    }


def _one_label(part: Part) -> dict[str, str]:
    """Sources of which every slice has one label, and that label."""
    labels: dict[str, set[str]] = {}
    for record in part.records:
        labels.setdefault(record.hospital, set()).add(str(record.label and record.label.value))
    return {name: min(each) for name, each in sorted(labels.items()) if len(each) == 1}


@dataclass(frozen=True)
class _Picture:
    pixels: Grey
    kind: str
    group: str
    weight: float = 1.0
    deciding: bool = False


def _lesion_free(record: Record, find_lungs: LungSegmenter) -> _Picture | None:
    """A lesion-free slice as what it is; None where that is in doubt."""
    pixels = read_pixels(record)
    share = float(find_lungs(pixels).mean())
    # `groundglass data slices` names its files <series>_<index>.
    group = record.patient_id if record.patient_known else record.path.stem.rpartition("_")[0]
    if not share:
        return _Picture(pixels, OTHER_PART, group)
    return _Picture(pixels, LUNG, group, _LESION_FREE) if share >= MUCH_LUNG else None


def _lung_pictures(
    own: Sequence[_Picture], cut: Sequence[_Picture], seed: int, effort: float
) -> Iterator[_Picture]:
    """Slices as they are and as other publications might show them, lesion-free slices, phantoms."""
    rng = np.random.default_rng([seed, 1])
    lungs = [picture for picture in cut if picture.kind == LUNG]
    yield from own
    yield from lungs
    for picture in own:
        yield replace(picture, pixels=vary(picture.pixels, rng), weight=_VARIED, deciding=False)
        sick = vary(paint_disease(picture.pixels, rng), rng)
        yield replace(picture, pixels=sick, weight=_VARIED, deciding=False)
    for index, picture in enumerate(lungs):
        changed = vary(picture.pixels, rng) if index % 2 else paint_disease(picture.pixels, rng)
        yield replace(picture, pixels=changed)
    for index, pixels in enumerate(phantom_slices(max(_FEWEST_PHANTOMS, round(effort * _PHANTOMS)), seed)):
        yield _Picture(pixels, LUNG, f"phantom {index}", _PHANTOM)


def _other_pictures(
    own: Sequence[_Picture], cut: Sequence[_Picture], seed: int, effort: float
) -> Iterator[_Picture]:
    yield from (picture for picture in cut if picture.kind != LUNG)
    lungs = [picture.pixels for picture in [*own, *cut[::2]] if picture.kind == LUNG]
    for index, (kind, pixels) in enumerate(out_of_distribution_examples(lungs, seed, effort)):
        yield _Picture(pixels, kind, f"other {index}")
