"""Recipes of self-supervised pretraining, checked and overridable like those of training.

Recipes: how a network is trained, read from YAML, every field checked and overridable.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groundglass.errors import RecipeError
from groundglass.imaging.crop import Normalisation, Preprocessing
from groundglass.models.catalogue import entries

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_Model = TypeVar("_Model", bound=BaseModel)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSection(Section):
    """Which network, from which weights.

    ``mask``, ``attention`` and ``histogram`` are switches of Mask-EfficientNet, without meaning for others;
    ``mirror`` averages every judgement over the slice and its mirror image. ``opacity`` adds a second output
    to any of them: is there pneumonia-like opacity, whatever its cause?
    ``start`` is the seed of all parameters that ``weights`` does not give; without it, they are drawn by the
    run's seed. Runs whose weights are to be averaged have one start and different seeds.
    """

    name: str
    weights: str = "none"
    mask: bool = True
    attention: bool = True
    histogram: bool = True
    dropout: Share = 0.2
    mirror: bool = False
    opacity: bool = False
    start: Count | None = None


class FramingSection(Section):
    """Fields of :class:`groundglass.imaging.crop.Preprocessing`."""

    size: Annotated[int, Field(ge=32, le=1024)] = 160
    crop: bool = True
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.06
    normalisation: Normalisation = "two-anchor"

    def build(self) -> Preprocessing:
        """The preprocessing these fields describe."""
        return Preprocessing(**self.model_dump())


class AugmentationSection(Section):
    """Ranges and probabilities of the augmentations; zero switches one off.

    The first four are the paper's (section III-A), the others keep a network from reading the file_format, the
    window or the scanner instead of the lungs.
    """

    translation: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    rotation: Annotated[float, Field(ge=0, le=180)] = 12.0
    mirror: Share = 0.5
    noise: Share = 0.3
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.7
    stretch: Annotated[float, Field(ge=0, lt=1)] = 0.12
    grey: Share = 0.8
    blur: Share = 0.25
    jpeg: Share = 0.3
    erasing: Share = 0.25
    mixup: Annotated[float, Field(ge=0)] = 0.0


class SynthesisSection(Section):
    """Lesion synthesis: lesion-free slices, each drawn untouched as NonCOVID or painted as COVID.

    The first ``epochs_alone`` epochs hold nothing else: a supervised pretraining that knows no hospital.
    ``ground_glass`` is the share of painted slices with ground glass alone; the others get consolidation,
    crazy paving or a mixture. ``mimics`` is the share of unpainted slices that get a sign of another disease.
    ``teaches`` says which of the network's outputs all these slices train: that of COVID, that of opacity, or
    both; opacity is taught by nothing else.
    """

    slices_per_epoch: Count = 0
    epochs_alone: Count = 0
    painted: Share = 0.5
    severity: tuple[Share, Share] = (0.08, 0.8)
    ground_glass: Share = 1.0
    mimics: Share = 0.0
    teaches: Literal["covid", "opacity", "both"] = "covid"


class OptimiserSection(Section):
    """AdamW with a cosine schedule after a linear warm-up."""

    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    final_lr_share: Share = 0.01
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0


class TrainingSection(Section):
    """Length, batches, regularisation and what is kept.

    ``opacity_weight`` is what one slice's loss of opacity weighs against one slice's loss of COVID.
    """

    epochs: Annotated[int, Field(ge=1)] = 14
    batch_size: Annotated[int, Field(ge=2)] = 32
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    opacity_weight: Annotated[float, Field(ge=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    selection: Literal["last", "val_auc", "val_loss"] = "last"


class Recipe(Section):
    """Everything that decides a training, except data, split and seed."""

    name: str
    network: NetworkSection
    preprocessing: FramingSection = FramingSection()
    augmentation: AugmentationSection = AugmentationSection()
    synthesis: SynthesisSection = SynthesisSection()
    optimiser: OptimiserSection = OptimiserSection()
    training: TrainingSection = TrainingSection()

    def to_yaml(self) -> str:
        """The recipe as YAML, every field spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def recipe_names(kind: str = "") -> list[str]:
    """Names of the recipes that come with the package, those of a sub-folder where ``kind`` names one."""
    folder = _folder(kind)
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or from a YAML file, with overrides such as ``optimiser.lr=3e-4``.

    A network's name stands for its family's recipe with that network: ``resnet-18`` for ``resnet``.

    Raises:
        RecipeError: for an unknown recipe, an unknown key (with a suggestion) or a value out of range.
    """
    family = _family(name)
    fields = read_fields(family or name)
    if family:
        fields["name"] = fields["network"]["name"] = name
    apply_overrides(fields, overrides)
    return parse_recipe(fields, name)


def parse_recipe(fields: dict[str, Any], name: str) -> Recipe:
    """Check a recipe's fields; ``name`` is what an error message calls it.

    Raises:
        RecipeError: for the first fault; see :func:`check`. Also where the second output and what painted
            slices teach do not fit each other.
    """
    recipe = check(Recipe, fields, name)
    _check_opacity(recipe, name)
    return recipe


def _check_opacity(recipe: Recipe, name: str) -> None:
    teaches, opacity = recipe.synthesis.teaches, recipe.network.opacity
    if teaches != "covid" and not opacity:
        raise RecipeError(
            f"recipe {name}: synthesis.teaches={teaches} has no output to teach; add network.opacity=true"
        )
    if opacity and (teaches == "covid" or not recipe.synthesis.slices_per_epoch):
        raise RecipeError(
            f"recipe {name}: network.opacity=true learns from painted slices alone; add "
            "synthesis.teaches=both (or opacity) and synthesis.slices_per_epoch above 0"
        )


def check(model: type[_Model], fields: dict[str, Any], name: str) -> _Model:
    """Check the fields of a recipe of some kind.

    Raises:
        RecipeError: for the first unknown key (with a suggestion), missing key or value out of range.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_first_fault(error, model)}") from None


def apply_overrides(fields: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set fields as ``KEY=VALUE`` says.

    Raises:
        RecipeError: an override is not of that form.
    """
    for override in overrides:
        _apply(fields, override)


def _family(name: str) -> str | None:
    """The family of the network called ``name``, or None where no network is."""
    return next((entry.family for entry in entries() if entry.name == name), None)


def read_fields(name: str, kind: str = "") -> dict[str, Any]:
    """The unchecked fields of a recipe that comes with the package, or of a YAML file.

    Args:
        name: of the recipe, or a path.
        kind: sub-folder of the package's recipes.

    Raises:
        RecipeError: there is no such recipe, or it is no mapping.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from None
    else:
        if name not in recipe_names(kind):
            known = [*recipe_names(kind), *(entry.name for entry in entries() if not kind)]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(recipe_names(kind))}"
            raise RecipeError(f"no {kind} recipe named {name!r}; {hint}".replace("  ", " "))
        text = (_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of sections, not {type(fields).__name__}")
    return fields


def _folder(kind: str) -> Traversable:
    folder = resources.files("groundglass") / "recipes"
    return folder / kind if kind else folder


def _apply(fields: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, for example optimiser.lr=3e-4")
    *sections, last = key.split(".")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise RecipeError(f"--set {override}: {section} is a value, not a section")
    try:
        fields[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {value!r} is not a valid value") from None


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    fault = error.errors()[0]
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], _siblings(model, location[:-1]), 1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], close[0]])}?" if close else ""
        return f"unknown key {key}; {hint or 'known are: ' + ', '.join(_siblings(model, location[:-1]))}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _siblings(model: type[BaseModel], sections: list[str]) -> list[str]:
    for section in sections:
        annotation = model.model_fields[section].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


PRETRAINING = "pretraining"
"""Folder of these recipes below that of the others."""


class PretrainedSection(Section):
    """Which network, from which weights; head and classifier are not trained."""

    name: str
    weights: str = "none"


class ContrastSection(Section):
    """How views are compared.

    ``queue`` is the number of earlier keys that serve as negatives, for each of the three comparisons; by
    default half the slices, and never more than that.
    """

    dimensions: Annotated[int, Field(ge=2)] = 128
    hidden: Annotated[int, Field(ge=2)] = 512
    temperature: Positive = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    queue: Annotated[int, Field(ge=1)] | None = None


class PretrainingSection(Section):
    """Length and batches."""

    epochs: Annotated[int, Field(ge=1)] = 40
    batch_size: Annotated[int, Field(ge=2)] = 32


class PretrainRecipe(Section):
    """Everything that decides a pretraining, except data, split and seed."""

    name: str
    network: PretrainedSection
    preprocessing: FramingSection = FramingSection()
    # Two views must be told apart from other slices by what is in the lungs, not by a crop that is the same.
    augmentation: AugmentationSection = AugmentationSection(smallest_crop=0.35, rotation=20.0)
    contrast: ContrastSection = ContrastSection()
    optimiser: OptimiserSection = OptimiserSection()
    training: PretrainingSection = PretrainingSection()

    def to_yaml(self) -> str:
        """The recipe as YAML, every field spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_pretrain_recipe(
    name: str, overrides: Sequence[str] = (), network: str | None = None
) -> PretrainRecipe:
    """Read a pretraining recipe by name or from a YAML file.

    Args:
        name: of the recipe, or a path.
        overrides: such as ``contrast.temperature=0.1``.
        network: takes the place of the recipe's.

    Raises:
        RecipeError: for an unknown recipe, an unknown key (with a suggestion) or a value out of range.
    """
    fields = read_fields(name, PRETRAINING)
    if network is not None:
        fields.setdefault("network", {})["name"] = network
    apply_overrides(fields, overrides)
    return parse_pretrain_recipe(fields, name)


def parse_pretrain_recipe(fields: dict[str, Any], name: str) -> PretrainRecipe:
    """Check a recipe's fields; ``name`` is what an error message calls it."""
    return check(PretrainRecipe, fields, name)
