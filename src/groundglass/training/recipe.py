"""Recipes: how a network is trained or pretrained, read from YAML, every field checked and overridable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_origin

import yaml
from pydantic import AfterValidator, Field, ValidationError

from groundglass.errors import RecipeError
from groundglass.imaging.crop import Preprocessing, Section
from groundglass.models.catalogue import entries

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
AtLeast1 = Annotated[int, Field(ge=1)]


def _ascending(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"the smaller number comes first, as in [{span[1]}, {span[0]}]")
    return span


FREE = ("workers", "devices", "loggers")  # of ``trainer``, which decide nothing of the result

RATES = {"vgg": 2e-4}
"""Learning rates of families that bear less than the others: VGG has no batch normalisation."""


class BackboneSection(Section):
    """Which network, from which weights; all that a pretraining, which trains no head, asks of it."""

    name: str
    weights: str = "none"
    options: dict[str, Any] = Field(default_factory=dict)


class NetworkSection(BackboneSection):
    """One of the catalogue, any of timm with features at strides 4 to 32, or ``module:Class`` for one of your own.

    ``options`` go to the class or to timm. ``mask``, ``attention`` and ``histogram`` are switches of Mask-EfficientNet,
    ``gates`` says where its attention is; ``lesions`` gives any network a lesion decoder.
    """

    mask: bool = True
    attention: bool = True
    gates: Literal["stages", "blocks"] = "stages"
    histogram: bool = True
    lesions: bool = True
    dropout: Share = 0.2


class AugmentationSection(Section):
    """Ranges and probabilities of the augmentations; zero switches one off.

    The first four are the paper's (section III-A), the others keep a network from reading the file format,
    the window or the scanner instead of the lungs. ``lungs_only`` blackens everything else, as some sources do.
    """

    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    rotation: Annotated[float, Field(ge=0, le=180)] = 12.0
    mirror: Share = 0.5
    noise: Share = 0.3
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.7
    stretch: Below1 = 0.12
    grey: Share = 0.8
    blur: Share = 0.25
    jpeg: Share = 0.3
    erasing: Share = 0.25
    lungs_only: Share = 0.0


class SamplingSection(Section):
    """Which slices of several sources an epoch holds, and what those without lesion mask teach.

    With ``draws`` slices are drawn: COVID and NonCOVID alike, of each label the named ``shares`` of sources and the
    others by the square root of their number of slices, within a source every patient alike; 0: every slice once.
    ``leave_out`` names sources, or a grade of one as in ``moscow:CT-1``. NonCOVID slices of the sources in
    ``lesion_free`` teach an empty lesion map. COVID slices whose mask covers less than ``least_lesion`` of the lungs
    are left out.
    """

    draws: Count = 0
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    lesion_free: tuple[str, ...] = ()
    least_lesion: Share = 0.01


class SynthesisSection(Section):
    """Lesion synthesis: lesion-free slices, each drawn untouched as NonCOVID or painted as COVID.

    ``ground_glass`` is the share of painted slices with ground glass alone; the others get consolidation,
    crazy paving or a mixture. ``mimics`` is the share of unpainted slices that get a sign of another disease.
    """

    slices_per_epoch: Count = 0
    painted: Share = 0.5
    severity: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.08, 0.8)
    ground_glass: Share = 1.0
    mimics: Share = 0.0


class OptimiserSection(Section):
    """Optimiser and schedule by timm's names and with its options; before the schedule the rate rises linearly."""

    name: str = "adamw"
    options: dict[str, Any] = Field(default_factory=dict)
    schedule: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "none"] = "cosine"
    schedule_options: dict[str, Any] = Field(default_factory=dict)
    lr: Positive = 1e-3
    weight_decay: AtLeast0 = 0.02
    warmup_epochs: AtLeast0 = 1.0
    final_lr_share: Share = 0.01
    gradient_clip: AtLeast0 = 1.0


class TrainerSection(Section):
    """What Lightning's ``Trainer`` is given. ``workers`` and ``loggers`` decide nothing of the result.

    ``devices`` are processes or GPUs per machine. ``wandb`` and ``mlflow`` log where they are installed.
    """

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate_grad_batches: AtLeast1 = 1
    workers: Count = 0
    devices: AtLeast1 = 1
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)


class LengthSection(Section):
    """Length and batches."""

    epochs: AtLeast1 = 40
    batch_size: Annotated[int, Field(ge=2)] = 32


class TrainingSection(LengthSection):
    """Length, batches, loss, regularisation, how much the lesion map counts beside the label, which epoch is kept.

    ``loss`` is binary cross-entropy or focal loss with ``focal_gamma``. ``class_weights`` are those of NonCOVID and
    COVID; ``balanced`` takes them from how often each is drawn. A training stops early once ``selection`` (``val_loss``
    for ``last``) has not improved for ``early_stopping`` epochs; 0: never.
    """

    epochs: AtLeast1 = 14
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    ema_decay: Below1 = 0.99
    lesion_weight: AtLeast0 = 1.0
    selection: Literal["last", "val_auc", "val_loss"] = "last"
    loss: Literal["bce", "focal"] = "bce"
    focal_gamma: AtLeast0 = 2.0
    class_weights: Literal["balanced"] | tuple[Positive, Positive] | None = None
    early_stopping: Count = 0


class ContrastSection(Section):
    """How views are compared; ``queue``: how many earlier keys each meets, half the slices by default and at most."""

    dimensions: Annotated[int, Field(ge=2)] = 128
    hidden: Annotated[int, Field(ge=2)] = 512
    temperature: Positive = 0.07
    momentum: Below1 = 0.999
    queue: AtLeast1 | None = None


class BaseRecipe(Section):
    """What all recipes have in common."""

    name: str
    network: BackboneSection
    optimiser: OptimiserSection = OptimiserSection()
    training: LengthSection = LengthSection()
    trainer: TrainerSection = TrainerSection()

    @property
    def deciding(self) -> dict[str, Any]:
        """Every field that decides the result."""
        free: Any = {"trainer": set(FREE)}
        return self.model_dump(mode="json", exclude=free)

    def to_yaml(self) -> str:
        """The recipe as YAML, every field spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class LungsRecipe(BaseRecipe):
    """Everything that decides a training of LungNet, except data and seed.

    Of ``draws`` slices an epoch ``phantoms`` are synthetic and ``empty`` show another part of the body; the others
    are drawn by source, by the square root of its number of slices. One patient in ``held_out`` of each source
    validates; 0: all of them are trained on, and nothing is validated.
    """

    held_out: Count = 5
    draws: Annotated[int, Field(ge=32)] = 1600
    phantoms: Share = 0.1
    empty: Share = 0.1
    training: LengthSection = LengthSection(epochs=60, batch_size=16)


class Recipe(BaseRecipe):
    """Everything that decides a training, except data, split and seed; ``augmenter`` names a class ``module:Class``."""

    network: NetworkSection
    augmenter: str = "groundglass.training.samples:Augmentation"
    preprocessing: Preprocessing = Preprocessing()
    augmentation: AugmentationSection = AugmentationSection()
    sampling: SamplingSection = SamplingSection()
    synthesis: SynthesisSection = SynthesisSection()
    training: TrainingSection = TrainingSection()


class PretrainRecipe(BaseRecipe):
    """Everything that decides a pretraining, except data, split and seed."""

    preprocessing: Preprocessing = Preprocessing()
    # Two views should resemble each other by what is in the lungs, not by a crop that is the same.
    augmentation: AugmentationSection = AugmentationSection(smallest_crop=0.35, rotation=20.0)
    contrast: ContrastSection = ContrastSection()


AnyRecipe_co = TypeVar("AnyRecipe_co", bound=BaseRecipe, covariant=True)


def recipe_names(kind: str = "") -> list[str]:
    """Names of the recipes that come with the package, those of a subfolder where ``kind`` names one."""
    return sorted(path.name[:-5] for path in _folder(kind).iterdir() if path.name.endswith(".yaml"))


def described_recipes(kind: str = "") -> dict[str, str]:
    """The recipes that come with the package, and the comment that each begins with."""
    described = {}
    for name in recipe_names(kind):
        text = (_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")
        comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
        described[name] = " ".join(line.lstrip("# ") for line in comment)
    return described


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or from a YAML file, with overrides such as ``optimiser.lr=3e-4``.

    A network's name stands for recipe ``mask-efficientnet`` with that network.

    Raises:
        RecipeError: for an unknown recipe, an unknown key (with a suggestion) or a value out of range.
    """
    return checked(Recipe, _fields(name, overrides), name)


def load_lungs_recipe(name: str, overrides: Sequence[str] = ()) -> LungsRecipe | None:
    """Read a recipe of LungNet like :func:`load_recipe`; None where ``name`` is a recipe of another network."""
    fields = _fields(name, overrides)
    network = fields.get("network")
    of_lungs = isinstance(network, dict) and network.get("name") == "lung-net"
    return checked(LungsRecipe, fields, name) if of_lungs else None


def load_pretrain_recipe(name: str, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read a pretraining recipe like :func:`load_recipe`."""
    return checked(PretrainRecipe, _fields(name, overrides, "pretraining"), name)


def checked(model: type[AnyRecipe_co], fields: dict[str, Any], name: str) -> AnyRecipe_co:
    """A recipe of its fields; ``name`` is what an error message calls it.

    Raises:
        RecipeError: for the first unknown key (with a suggestion), missing key or value out of range.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
    names, section = list[str](), cast(Any, model)
    for each in map(str, fault["loc"]):
        names.append(each)
        fields_of = getattr(section, "model_fields", {})
        if each in fields_of and get_origin(fields_of[each].annotation) in {Union, UnionType}:
            break  # what follows says which of a field's types was tried
        section = fields_of[each].annotation if each in fields_of else section
    *sections, last = names
    key = ".".join(names)
    if fault["type"] == "missing":
        said = f"{key} is missing"
    elif fault["type"] == "extra_forbidden":
        said = f"unknown key {key}; known are: {', '.join(section.model_fields)}"
        if close := get_close_matches(last, section.model_fields, 1, cutoff=0.5):
            said = f"unknown key {key}; did you mean {'.'.join([*sections, *close])}?"
    else:
        said = f"{key}={fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    raise RecipeError(f"recipe {name}: {said}")


class _Loader(yaml.SafeLoader):
    """YAML whose 1e-8 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _fields(name: str, overrides: Sequence[str], kind: str = "") -> dict[str, Any]:
    """A recipe's fields, not yet checked."""
    network = next((entry for entry in entries() if entry.name == name and not kind), None)
    fields = _read("mask-efficientnet" if network else name, kind)
    if network is not None:
        fields["name"] = fields["network"]["name"] = name
        fields["optimiser"] = {"lr": RATES[network.family]} if network.family in RATES else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {override}: expected KEY=VALUE, for example optimiser.lr=3e-4")
        *sections, last = key.split(".")
        place = fields
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {override}: {section} is a value, not a section")
        try:
            place[last] = _Loader(value).get_single_data()
        except (yaml.YAMLError, ValueError, RecursionError):
            raise RecipeError(f"--set {override}: {value!r} is not a valid value") from None
    return fields


def _read(name: str, kind: str) -> dict[str, Any]:
    path: Path | Traversable = Path(name)
    if not name.endswith((".yaml", ".yml")):
        path = _folder(kind) / f"{name}.yaml"
        if name not in (names := recipe_names(kind)):
            close = get_close_matches(name, names if kind else [*names, *(entry.name for entry in entries())], 1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
            raise RecipeError(f"no {kind}{' ' * bool(kind)}recipe named {name!r}; {hint}")
    try:
        fields = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: cannot be read as a recipe ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of sections, not {type(fields).__name__}")
    return fields


def _folder(kind: str) -> Traversable:
    return resources.files("groundglass") / "recipes" / kind
