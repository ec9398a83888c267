"""From a run to a bundle: ONNX model, calibration, input check, self-test, measured figures, model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import PARTS
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RunError
from groundglass.evaluation.calibration import fit_calibration, fit_conformal, fit_reference, series_rule, summary
from groundglass.evaluation.metrics import Estimate, now, versions
from groundglass.evaluation.part import Part, fingerprint, one_label, record_evaluation, select_part
from groundglass.files import name_some, printable, usable_cores
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import LungSegmenter, open_segmenter
from groundglass.imaging.phantom import make_phantom
from groundglass.inference import bundle
from groundglass.inference.bundle import Engine, Outputs, Precision, save_arrays, self_test, write_bundle
from groundglass.inference.calibration import Calibration, Conformal
from groundglass.reporting.html import environment
from groundglass.training.input_check_fit import fit_input_check, gather_examples
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
from groundglass.training.trainer import PACKAGES, check_writable

# Of the validation AUC against fp32, with which INT8 is chosen; among fewer validation slices no such loss is seen.
_LARGEST_LOSS, _FEWEST_SEEN = 0.005, 100
_COVERAGE = 0.9
_COMPARED = 16
_BATCH = 32

_Conformal = TypeVar("_Conformal", bound=Conformal)


@dataclass(frozen=True)
class Export:
    """One export."""

    run: Run  # finished
    output: Path  # the bundle, a folder or a name that ends in ``.zip``
    data: tuple[Path, ...]  # the data sets the run was trained on
    lesion_free: Path | None = None  # folder of lesion-free slices, which the input check learns from as well
    precision: Precision | None = None  # of the model; None for INT8 where it is as good as fp32 on the validation part
    name: str | None = None  # of the model; network, split and seed unless given
    cache: Path | None = None  # folder for cropped slices
    # ONNX model of the lung fields for the bundle, with which everything is measured; None for that of the training
    lungs: Path | None = None
    map_label: tuple[str, ...] = ()  # labels of other names in the data, such as CAP=NonCOVID

    @cached_property
    def segmenter(self) -> LungSegmenter:
        """Finds the lungs."""
        return self.run.lungs if self.lungs is None else open_segmenter(self.lungs)


def export(job: Export, tell: Callable[[str], None]) -> Precision:
    """Write a bundle, ``tell`` each step, and return the precision of its model.

    A test part is evaluated once more, which the run's evaluation log records.

    Raises:
        RunError: the run is unfinished, its network cannot be exported faithfully, INT8 was asked for and loses
            too much, or the bundle cannot be written.
        DataError: the data are not those the run was trained on.
    """
    run = job.run
    if not run.info.get("finished", False):
        raise RunError(f"{run.path}: the training has not finished; resume it with --resume, then export")
    again = job.output.suffix.lower() == ".zip" and job.output.is_file()
    check_writable(job.output.parent if again else job.output, "--output")
    check_writable(job.cache or cache_folder(), "--cache")
    parts, cropped = _load(job, tell)
    train, val = parts["train"], parts["val"]
    lesion_free = () if job.lesion_free is None else load_dataset(job.lesion_free, job.map_label).records
    tell("gathering pictures that the input check is to accept and to refuse")
    pictures, examples = gather_examples(run.preprocessing, job.segmenter, train.records, lesion_free)
    tell("exporting to ONNX")
    model, precision, auc = _choose(job, val, cropped, tell)
    engine = Engine(model, usable_cores())
    tell("predicting and measuring")
    outputs = {name: _run(engine, each.pixels, run.preprocessing) for name, each in cropped.items()}
    calibration, fitted = _calibrate(train, val, outputs["val"].logit)
    embedding = _run(engine, pictures, run.preprocessing).embedding
    check = fit_input_check(replace(examples, features=np.concatenate([examples.features, embedding], axis=1)))
    other = ~np.isin(val.patient, train.patient)
    reference = fit_reference(outputs["train"].embedding, outputs["val"].embedding[other])
    if reference is None:
        tell("too few validation slices of other patients: how far other data lie will not be known")
    if (tested := parts.get("test")) is not None:
        sha256 = fingerprint(tested, cropped["test"].sha256)
        record_evaluation(run.path, tested, sha256, now(), job.output)
    fields = {
        **_fields(job, parts),
        "precision": precision,
        "calibration": calibration.model_dump(),
        "series": fitted and {**fitted[0].model_dump(), **fitted[1]},
        "metrics": {
            name: summary(part, outputs[name].logit, calibration)
            | {"by_source": _by_source(part, outputs[name].logit, calibration)}
            for name, part in parts.items()
            if name != "train"
        },
        "validation_auc": auc,
    }
    phantom = make_phantom(np.random.default_rng(0), severity=0.5, level=0.5).slice.pixels
    contents = {
        bundle.MODEL: described(model, run.preprocessing, calibration),
        bundle.REFERENCE: save_arrays({**check.as_arrays(), **(reference.as_arrays() if reference else {})}),
        bundle.LUNGS: job.segmenter.model,
        bundle.SELF_TEST: save_arrays(self_test(engine, job.segmenter, run.preprocessing, phantom)),
    }
    sizes = {name: len(content) for name, content in contents.items()}
    contents[bundle.CARD] = printable(_card({**fields, "sizes": sizes, "uncertain": calibration.uncertain})).encode()
    write_bundle(job.output, fields, contents)
    return precision


def _load(job: Export, tell: Callable[[str], None]) -> tuple[dict[str, Part], dict[str, CroppedSet]]:
    """The parts that the split has, and their slices; folds of the official training part have no test part."""
    run = job.run
    manifest = load_pool(job.data, job.map_label).without(run.recipe.sampling.leave_out)
    spec, seed = run.info["split"], run.info["seed"]
    split = make_split(manifest, spec, seed, allow_overlap=True)
    names = [name for name in PARTS if name != "test" or split.parts.get(name)]
    parts = {name: select_part(manifest, spec, name, seed) for name in names}
    if "test" in parts:
        parts["test"] = parts["test"].of_both_labels()
    tell(f"cropping {sum(len(part.records) for part in parts.values())} slices")
    cropped = {
        name: load_cropped(part.records, run.preprocessing, 0.0, job.cache, job.segmenter)
        for name, part in parts.items()
    }
    if not set(run.info["training_sha256"][: run.info["counts"]["train"]]) <= set(cropped["train"].sha256):
        named = name_some([str(path) for path in job.data])
        raise DataError(f"{named}: not the data that {run.path} was trained on")
    return parts, cropped


def _choose(
    job: Export, val: Part, cropped: Mapping[str, CroppedSet], tell: Callable[[str], None]
) -> tuple[bytes, Precision, dict[Precision, float]]:
    """The model, its precision, and the validation AUC of each precision that was compared."""
    run, normalise = job.run, job.run.preprocessing.normalise
    images, pixels = normalise(cropped["val"].pixels), cropped["train"].pixels

    def measured(engine: Engine) -> float:
        # The validation part has both labels: export needs them to calibrate.
        return float(roc_auc_score(val.label, _run(engine, cropped["val"].pixels, run.preprocessing).logit))

    fp32 = to_onnx(run.network, run.preprocessing.size)
    engine = Engine(fp32)
    difference = largest_difference(run.network, engine, images[:_COMPARED])
    if not difference <= CLOSE:  # nor may it be NaN
        raise RunError(f"{run.path}: the exported network differs from PyTorch's by {difference:.2g} (limit {CLOSE})")
    auc: dict[Precision, float] = {"fp32": measured(engine)}
    few = job.precision is None and len(images) < _FEWEST_SEEN
    if few:
        tell(f"{len(images)} validation slices are too few to see what INT8 loses; fp32 is written")
    if few or job.precision == "fp32":
        return fp32, "fp32", auc
    tell("quantising to INT8")
    drawn = np.random.default_rng(0).permutation(len(pixels))[:CALIBRATING]
    int8 = quantise(fp32, normalise(pixels[drawn]), images)
    auc["int8"] = measured(Engine(int8))
    loss = auc["fp32"] - auc["int8"]
    if loss <= _LARGEST_LOSS:
        return int8, "int8", auc
    message = f"INT8 loses {loss:.4f} of the validation AUC (limit {_LARGEST_LOSS})"
    if job.precision == "int8":
        raise RunError(f"{run.path}: {message}; export fp32")
    tell(f"{message}; fp32 is written")
    return fp32, "fp32", auc


def _calibrate(
    train: Part, val: Part, logit: NDArray[np.float32]
) -> tuple[Calibration, tuple[Conformal, dict[str, Any]] | None]:
    """Calibration and the rule for series, fitted to the validation slices of sources with both labels, or to all.

    A source with one label can stand for it, and its slices would make prediction sets too narrow for other hospitals.
    It may as well hold what is hard: where all slices ask for wider sets, these count.
    """
    single = one_label(train.records)
    fair = np.array([record.hospital not in single for record in val.records])
    fair |= len(set(val.label[fair])) < 2
    chosen = replace(val, records=tuple(compress(val.records, fair)))
    calibration = fit_calibration(logit[fair], chosen.label, _COVERAGE)
    probability = np.array([calibration.probability(float(value)) for value in logit])
    fitted, rule = (series_rule(part, probability[of], _COVERAGE) for part, of in ((val, fair | True), (chosen, fair)))
    if fitted is not None and rule is not None:
        fitted = _wider(fitted[0], rule[0]), fitted[1]
    return _wider(calibration, fit_conformal(probability, val.label, _COVERAGE)), fitted


def _wider(one: _Conformal, other: Conformal) -> _Conformal:
    """With the larger quantile of each label."""
    return one.model_copy(
        update={"quantiles": {name: max(own, other.quantiles[name]) for name, own in one.quantiles.items()}}
    )


def _run(engine: Engine, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Outputs:
    """Logits and embeddings; slices are normalised batch by batch, as floating point takes four times their memory."""
    starts = range(0, len(pixels), _BATCH)
    batches = [engine.run(preprocessing.normalise(pixels[start : start + _BATCH])) for start in starts]
    logit, embedding = zip(*((each.logit, each.embedding) for each in batches), strict=True)
    return Outputs(np.concatenate(logit), np.concatenate(embedding))


def _by_source(
    part: Part, logit: NDArray[np.float32], calibration: Calibration
) -> dict[str, dict[str, dict[str, int]]]:
    """By source and true label: how many slices got each label."""
    table: dict[str, dict[str, Counter[str]]] = {}
    for record, each in zip(part.records, logit, strict=True):
        label = calibration.label(calibration.prediction_set(calibration.probability(float(each))))
        table.setdefault(record.hospital, {}).setdefault(record.label_name, Counter())[label] += 1
    return {name: {key: dict(each) for key, each in table[name].items()} for name in sorted(table)}


def _fields(job: Export, parts: Mapping[str, Part]) -> dict[str, Any]:
    """What ``bundle.json`` says of the run."""
    run, info = job.run, job.run.info
    return {
        "name": job.name or f"{run.recipe.network.name}, split {info['split']}, seed {info['seed']}",
        "created": now(),
        "network": {
            **run.recipe.network.model_dump(mode="json"),
            "input_size": run.preprocessing.size,
            "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        },
        "preprocessing": run.preprocessing.model_dump(),
        "positive": "COVID",
        "onnx": {"opset": OPSET, "input": bundle.INPUT, "outputs": outputs_of(run.network)},
        "training": {
            "recipe": run.recipe.name,
            **{name: info.get(name) for name in ("seed", "split", "data", "sources")},
            "lungs": {"sha256": job.segmenter.sha256, **job.segmenter.notes},
            "lesion_free": info.get("lesion_free"),
            "slices": {name: len(part.records) for name, part in parts.items()} | {"train": info["counts"]["train"]},
            # Sources of which every slice has one label, and that label.
            "one_label": one_label(parts["train"].records),
            "fingerprint": info.get("fingerprint"),
            "sha256": info["training_sha256"],
            "epochs": run.recipe.training.epochs,
            "seconds": info.get("training_seconds"),
            "versions": info.get("versions"),
        },
        "licence": "Research use only, no medical device. The weights were learned from "
        f"{', '.join(info.get('sources') or info['data'])}: what these slices' owners allow holds for the weights.",
        "versions": versions(*PACKAGES),
    }


def _card(fields: Mapping[str, Any]) -> str:
    """The model card as Markdown, every figure taken from the bundle's own data."""
    templates = environment(html=False)
    templates.filters["figure"] = lambda value: str(Estimate(value))
    templates.filters["interval"] = lambda measure: str(Estimate(**measure))
    templates.filters["percent"] = lambda value: "–" if value is None else f"{value:.0%}"
    return templates.get_template("model_card.md.j2").render(**fields)
