"""Recipes of self-supervised pretraining, checked and overridable like those of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import yaml
from pydantic import Field

from groundglass.training.recipe import (
    AugmentationSection,
    FramingSection,
    OptimiserSection,
    Positive,
    Section,
    apply_overrides,
    check,
    read_fields,
)

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
    framing: FramingSection = FramingSection()
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
