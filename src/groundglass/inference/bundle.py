"""A trained model as people carry it, a folder or zip: written, verified before it is used, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from groundglass.errors import BundleError
from groundglass.files import atomic_path, one_line, printable, usable_cores, write_bytes
from groundglass.imaging.crop import Preprocessing, Section
from groundglass.imaging.lungs import LungSegmenter
from groundglass.imaging.slice import Grey
from groundglass.inference.calibration import Calibration, Conformal
from groundglass.inference.input_check import InputCheck
from groundglass.inference.reference import EmbeddingReference

FORMAT = 3
"""Version of the bundle's format; another one is not read."""

MODEL, LUNGS, INFO, REFERENCE = "classifier.onnx", "lungs.onnx", "bundle.json", "reference.npz"
SELF_TEST, CARD = "selftest.npz", "MODEL_CARD.md"

INPUT = "image"
OUTPUTS = ("logit", "lesion_map", "embedding")
"""Of the model; one without lesion decoder lacks the second."""

CPU = ("cpu",)
"""Providers of ONNX Runtime, the preferred one first."""

Precision = Literal["fp32", "int8"]

DEFAULT = Path(__file__).parent.parent / "bundles" / "default"
"""The bundle that comes with the installation."""

DEFAULT_NAME = "default"
"""What that bundle is called wherever a bundle is named."""

_LARGEST_FILE, _LARGEST_INFO = 2**30, 2**20
# Logits of the self-test may differ this much from those at export: fp32 sums in another order on other
# machines; INT8 kernels round differently where the CPU has no VNNI instructions.
_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "int8": 0.25}
# And the lungs' share of the slice this much.
_LUNG_TOLERANCE = 0.01
_DATE = (2020, 1, 1, 0, 0, 0)  # of files in a zip: the same bundle gives the same zip


@dataclass(frozen=True)
class Outputs:
    """What the network says of N cropped slices."""

    logit: NDArray[np.float32]  # shape (N,)
    embedding: NDArray[np.float32]  # shape (N, channels)
    # logits, shape (N, h, w); None of a model without lesion decoder
    lesion_map: NDArray[np.float32] | None = None


class Engine:
    """One ONNX model.

    Args:
        model: content of the ONNX file.
        threads: of the matrix arithmetic; 0 for one per core but one, which reads and crops.
        name: what messages call the model.
        providers: of ONNX Runtime, the preferred one first, such as ``cuda`` or ``CUDAExecutionProvider``.

    Raises:
        BundleError: the model cannot be loaded, has other inputs and outputs, or a provider is not there.
    """

    def __init__(self, model: bytes, threads: int = 0, name: str = MODEL, providers: Sequence[str] = CPU) -> None:
        import onnxruntime  # noqa: PLC0415 - 0.1 s, and `--help` does not need it

        self._name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, usable_cores() - 1)
        options.log_severity_level = 4
        # Threads that spin while they wait steal the cores from reading and cropping, which run beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        known = {_short(each): each for each in onnxruntime.get_available_providers()}
        for each in providers:
            if _short(each) not in known:
                choices = ", ".join(known)
                raise BundleError(f"{each}: this ONNX Runtime has no such provider; choose of {choices}")
        chosen = [known[_short(each)] for each in providers or ("cpu",)]
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=chosen)
        except Exception as error:  # noqa: BLE001 - the runtime raises its own, undocumented kinds
            raise BundleError(f"{name}: ONNX Runtime cannot load the model ({_reason(error)})") from None
        if self._session.get_providers()[0] != chosen[0]:  # ONNX Runtime falls back by itself
            raise BundleError(f"{chosen[0]} does not start on this machine; choose cpu")
        self._outputs = [output.name for output in self._session.get_outputs()]
        inputs = [each.name for each in self._session.get_inputs()]
        if inputs != [INPUT] or tuple(self._outputs) not in {OUTPUTS, ("logit", "embedding")}:
            raise BundleError(f"{name}: expected the input {INPUT} and the outputs {', '.join(OUTPUTS)}")

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Run the network on cropped slices, float32, shape (N, size, size), as ``Preprocessing.normalise`` makes them.

        A BundleError where the model fails, or gives what is not a number.
        """
        try:
            values = self._session.run(self._outputs, {INPUT: images[:, None]})
        except Exception as error:  # noqa: BLE001 - see above
            raise BundleError(f"{self._name}: the model cannot be run ({_reason(error)})") from None
        outputs = Outputs(**dict(zip(self._outputs, values, strict=True)))
        if not np.isfinite(outputs.logit).all():
            raise BundleError(f"{self._name}: the model gives a logit that is no number")
        return outputs


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


class FileInfo(Section):
    """One file of a bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=1, le=_LARGEST_FILE)


class SeriesRule(Conformal):
    """How series scores become labels; ``patients`` of each label it was fitted on, ``sources`` of both."""

    patients: dict[Literal["COVID", "NonCOVID"], int]
    sources: dict[str, int]


class BundleInfo(Section):
    """Content of ``bundle.json``."""

    format: int
    # SHA-256 of all the other fields, so that no field can change by accident; no signature
    id: str = Field(pattern="^[0-9a-f]{64}$")
    name: str = Field(min_length=1, max_length=100)
    created: str  # when, ISO 8601 in UTC
    network: dict[str, Any]  # name, input size, parameters and whatever describes it
    preprocessing: Preprocessing
    positive: Literal["COVID"]  # the class a logit above 0 speaks for
    precision: Precision
    calibration: Calibration
    series: SeriesRule | None = None  # None where there were too few patients with several slices
    onnx: dict[str, Any]  # opset, input and outputs
    training: dict[str, Any]  # recipe, seed, split, hash of the training data, versions
    metrics: dict[str, Any]  # measured results, by part
    validation_auc: dict[Precision, float]  # of each precision that was compared to choose one
    licence: str  # of the weights
    versions: dict[str, str]  # of what wrote the bundle
    files: dict[str, FileInfo]  # every other file of the bundle


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path  # of the folder or zip
    info: BundleInfo
    model: bytes  # content of its ONNX file
    lungs: LungSegmenter  # finds the lung fields, on the CPU
    input_check: InputCheck  # refuses what is not an axial lung CT slice
    reference: EmbeddingReference | None  # where the training slices lie; None where the bundle does not say
    threads: int  # of the engine; 0 for one per core but one
    providers: tuple[str, ...]  # of ONNX Runtime, which run the model
    # One for each process: a forked one has none of the threads.
    _engines: dict[int, Engine] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str | PathLike[str] | None = None, threads: int = 0, providers: str | Sequence[str] = CPU
    ) -> Bundle:
        """Open a bundle and verify format version, sizes, hashes and the self-test.

        Args:
            path: folder or zip; the text ``default`` or None for the bundle that comes with the installation.
            threads: of the engine; 0 for one per core but one.
            providers: of ONNX Runtime, see :class:`Engine`.

        Raises:
            BundleError: it is missing, damaged, tampered with, or of another format, or a provider is not there.
        """
        place = DEFAULT if path is None or path == DEFAULT_NAME else Path(path)
        if not os.path.exists(place):  # where Path.exists raises, this says no
            raise BundleError(f"{place}: no such bundle; make one with `groundglass export`")
        if not place.is_dir() and not zipfile.is_zipfile(place):
            raise BundleError(f"{place}: neither a bundle's folder nor a zip")
        info = _parse(place, _read(place, INFO, _LARGEST_INFO))
        names = (MODEL, LUNGS, REFERENCE, SELF_TEST)
        model, lungs, reference, test = (_verified(place, info, name) for name in names)
        arrays = _arrays(place, REFERENCE, reference)
        if (check := InputCheck.from_arrays(arrays)) is None:
            raise BundleError(f"{place}: {REFERENCE} holds no input check")
        segmenter, embedded = LungSegmenter(lungs, f"{place}: {LUNGS}"), EmbeddingReference.from_arrays(arrays)
        chosen = (providers,) if isinstance(providers, str) else tuple(providers)
        bundle = cls(place, info, model, segmenter, check, embedded, threads, chosen)
        bundle._check(_arrays(place, SELF_TEST, test))
        return bundle

    def __reduce__(self) -> tuple[Any, ...]:
        return Bundle.open, (str(self.path.absolute()), self.threads, self.providers)

    def _check(self, expected: Mapping[str, NDArray[Any]]) -> None:
        """Run the slice of the self-test through both models and compare."""
        try:
            pixels, logit, share = expected["slice"], float(expected["logit"]), float(expected["lung"])
            found = self_test(self.engine(), self.lungs, self.preprocessing, np.asarray(pixels, np.uint8))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{self.path}: damaged {SELF_TEST} ({error})") from None
        measured, seen = float(found["logit"]), float(found["lung"])
        if not (abs(measured - logit) <= _TOLERANCE[self.info.precision] and abs(seen - share) <= _LUNG_TOLERANCE):
            raise BundleError(
                f"{self.path}: the self-test gives another result than at export (logit {measured:.4f}, "
                f"expected {logit:.4f}; lungs {seen:.3f} of the slice, expected {share:.3f}); the models or "
                "this machine's ONNX Runtime is at fault"
            )

    @property
    def id(self) -> str:
        """Short id: the first 12 digits of the hash, and the precision."""
        return f"{self.info.id[:12]}-{self.info.precision}"

    @property
    def card(self) -> str:
        """The model card in Markdown; empty where the bundle has none."""
        try:
            return _read(self.path, CARD, _LARGEST_INFO).decode("utf-8", "replace")
        except BundleError:
            return ""

    @property
    def preprocessing(self) -> Preprocessing:
        """How slices are cropped."""
        return self.info.preprocessing

    def engine(self) -> Engine:
        """The model, loaded once in each process."""
        if os.getpid() not in self._engines:
            name = f"{self.path}: {MODEL}"
            self._engines[os.getpid()] = Engine(self.model, self.threads, name, self.providers)
        return self._engines[os.getpid()]


def self_test(
    engine: Engine, lungs: LungSegmenter, preprocessing: Preprocessing, pixels: Grey
) -> dict[str, NDArray[Any]]:
    """Arrays of ``selftest.npz``: a slice, uint8, shape (H, W), its share of lung and the model's logit."""
    cropped = preprocessing.apply(pixels, lungs(pixels))
    logit = engine.run(preprocessing.normalise(cropped.pixels[None])).logit[0]
    return {"slice": pixels, "lung": cropped.lungs.mean(), "logit": logit.astype(np.float64)}


def _read(path: Path, name: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a bundle's file, and one more where it is longer; nothing is unpacked to disk."""
    try:
        folder = path if path.is_dir() else zipfile.Path(path)
        with (folder / name).open("rb") as stream:
            return stream.read(limit + 1)
    except FileNotFoundError:
        raise BundleError(f"{path}: {name} is missing") from None
    except Exception as error:  # noqa: BLE001 - zipfile and zlib raise many kinds on damaged archives
        raise BundleError(f"{path}: {name} cannot be read ({_reason(error)})") from None


def _verified(path: Path, info: BundleInfo, name: str) -> bytes:
    """A file whose size and hash are those that ``bundle.json`` lists."""
    if name not in info.files:
        raise BundleError(f"{path}: {INFO} does not list {name}; the bundle is incomplete")
    expected = info.files[name]
    content = _read(path, name, expected.bytes)
    if len(content) != expected.bytes or hashlib.sha256(content).hexdigest() != expected.sha256:
        advice = "copy or download the bundle again"
        raise BundleError(f"{path}: {name} was changed or damaged (its size or SHA-256 does not fit); {advice}")
    return content


def _parse(path: Path, content: bytes) -> BundleInfo:
    try:
        if len(content) > _LARGEST_INFO:
            raise ValueError("larger than any bundle's")
        document = json.loads(content)
        version = document["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path}: damaged {INFO} ({_reason(error)})") from None
    if version != FORMAT:
        advice = "update groundglass, or export the run again with `groundglass export`"
        raise BundleError(f"{path}: bundle format {version!r:.20} is not {FORMAT}, which is read here; {advice}")
    if document.get("id") != identity(document):
        raise BundleError(f"{path}: {INFO} was changed after it was written (its id does not fit)")
    try:
        return BundleInfo.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{path}: damaged {INFO} ({_first_fault(error)})") from None


def identity(document: Mapping[str, Any]) -> str:
    """The id of the content of ``bundle.json``."""
    rest = {name: value for name, value in document.items() if name != "id"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _first_fault(error: ValidationError) -> str:
    """The first complaint, as ``field: what is wrong``."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__, 200)


def _arrays(path: Path, name: str, content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # noqa: BLE001 - numpy and zipfile raise many kinds on damaged files
        raise BundleError(f"{path}: damaged {name} ({error})") from None


def save_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the content of an ``.npz`` file without pickled objects."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def write_bundle(path: Path, fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
    """Write a bundle: a zip where the name ends in ``.zip``, else a folder, whose files are replaced one by one.

    ``fields`` are those of ``bundle.json``, which comes last, but ``format``, ``id`` and ``files``; ``contents`` the
    other files by name. A BundleError where fields are incomplete or out of range.
    """
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(contents.items())
    }
    document = {"format": FORMAT, **fields, "files": files}
    document["id"] = identity(document)
    try:
        BundleInfo.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{path}: {_first_fault(error)}") from None
    info = printable(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    everything = {**contents, INFO: info}
    if path.suffix.lower() != ".zip":
        for name, content in everything.items():
            write_bytes(path / name, content)
        return
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in everything.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
