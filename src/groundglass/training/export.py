"""From a run to a bundle: ONNX models, calibration, gate, self-test, measured figures, model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import PARTS, read_pixels
from groundglass.errors import DataError, RunError
from groundglass.evaluation import ledger
from groundglass.evaluation.brief import brief
from groundglass.evaluation.metrics import THRESHOLD
from groundglass.evaluation.part import Part, fingerprint, printable, select_part
from groundglass.imaging.phantom import make_phantom
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
from groundglass.inference.engine import INPUT, OUTPUTS, Engine, Outputs
from groundglass.inference.gate import Gate
from groundglass.inference.reference import Described, Reference, describe_slices, embed
from groundglass.inference.trust import Calibration
from groundglass.reporting.model_card import render_card
from groundglass.training.framed import FramedSet, load_framed
from groundglass.training.gate import Lessons, fit_gate, gather_lessons
from groundglass.training.onnx_model import CLOSE, OPSET, largest_difference, to_onnx
from groundglass.training.provenance import now, versions
from groundglass.training.quantise import quantise
from groundglass.training.run import Run

LARGEST_LOSS = 0.005
"""An INT8 model whose AUC lies farther than this from that of fp32 is not written."""

LICENCE = (
    "Apache-2.0 for the weights. The images they were learned from remain under their publishers' terms. "
    "Research use only, no medical device."
)

_COVERAGE = 0.9
_COMPARED = 32
_BATCH = 32


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
        cache: folder for framed slices.
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
    gate: Gate
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
    """The slices of the run's split, framed."""

    run: Run
    parts: Mapping[str, Part]
    framed: Mapping[str, FramedSet]
    lessons: Lessons
    described: Mapping[str, Described]

    def images(self, name: str) -> NDArray[np.float32]:
        """Normalised, shape (N, size, size)."""
        return self.run.framing.normalise(self.framed[name].pixels)


def _load(job: Export) -> _Material:
    run, manifest = job.run, load_dataset(job.data)
    parts = {name: select_part(manifest, run.split_spec, name, run.seed) for name in PARTS}
    framed = {name: load_framed(part.records, run.framing, 0.0, job.cache) for name, part in parts.items()}
    if set(framed["train"].sha256) != set(run.info["training_sha256"]):
        raise DataError(f"{job.data}: not the data that {run.path} was trained on")
    lesion_free = () if job.lesion_free is None else load_dataset(job.lesion_free).records
    lessons = gather_lessons(run.framing, parts["train"].records, lesion_free)
    described = {name: _describe(run, parts[name]) for name in ("train", "val")}
    return _Material(run, parts, framed, lessons, described)


def _describe(run: Run, part: Part) -> Described:
    patients = [record.patient_id for record in part.records]
    return describe_slices(run.framing, map(read_pixels, part.records), patients)


def _export_network(job: Export, material: _Material) -> bytes:
    network = job.run.network
    model = to_onnx(network, job.run.framing.size)
    difference = largest_difference(network, Engine(model), material.images("val")[:_COMPARED])
    if difference > CLOSE:
        raise RunError(
            f"{job.run.path}: the exported network differs from PyTorch's by {difference:.2g} (limit {CLOSE})"
        )
    return model


def _judge(model: bytes, material: _Material) -> _Judged:
    """Ask a model about every slice and fit to it what depends on its outputs."""
    engine = Engine(model)
    outputs = {name: _outputs(engine, material.images(name)) for name in material.framed}
    parts = material.parts
    calibration = Calibration.fit(outputs["val"].logit, parts["val"].label, _COVERAGE)
    gate = fit_gate(material.lessons, engine, material.run.framing)
    embedded = {name: embed(engine, material.run.framing, each) for name, each in material.described.items()}
    reference = Reference.fit(embedded["train"], embedded["val"])
    metrics = {name: brief(parts[name], outputs[name].logit, calibration) for name in ("val", "test")}
    return _Judged(model, engine, outputs, calibration, gate, reference, metrics)


def _outputs(engine: Engine, images: NDArray[np.float32]) -> Outputs:
    batches = [engine.run(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return Outputs(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in OUTPUTS))


def _record(job: Export, material: _Material) -> None:
    part, run = material.parts["test"], job.run
    sha256 = fingerprint(part, material.framed["test"].sha256)
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
    framed = run.framing.frame(make_phantom(np.random.default_rng(0), severity=0.5, level=0.5).slice.pixels)
    image = run.framing.normalise(framed.pixels[None])
    contents = {
        TRUST: save_arrays(_trust({each: judged[each] for each in kept})),
        SELF_TEST: save_arrays(
            self_test_arrays(framed.pixels, {each: judged[each].engine.run(image) for each in kept})
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
    made = f"mean of {len(run.averaged)} seeds" if run.averaged else f"seed {run.seed}"
    return {
        "name": job.name or f"{run.recipe.network.name}, split {split}, {made}",
        "created": now(),
        "network": {
            **run.recipe.network.model_dump(mode="json"),
            "input_size": run.framing.size,
            "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        },
        "framing": asdict(run.framing),
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
            "averaged": list(run.averaged),
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
