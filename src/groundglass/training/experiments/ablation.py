"""The trainings of the ablation: the default recipe with one thing changed at a time."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from groundglass.data.manifest import Label, Manifest, name_some
from groundglass.errors import DataError, RecipeError
from groundglass.evaluation.ablation import DEFAULT, LEFT_OUT
from groundglass.evaluation.outcome import Identity
from groundglass.imaging.framing import Normalisation
from groundglass.training.experiments.task import KINDS, Task, starting_from
from groundglass.training.recipe import AugmentationSection, Recipe

PROTOCOLS = ("official", LEFT_OUT)

_SWITCHES = {
    "mask": "mask branch",
    "attention": "attention (channel gates)",
    "histogram": "histogram term",
}
_PAPERS = ("translation", "rotation", "mirror", "noise")
"""The augmentations of the paper's section III-A."""

_LEAST_SLICES = 10
"""A source of fewer slices says too little of those who are not trained on it."""

_PAINTED = 320
"""Slices of lesion synthesis per epoch where the default has none."""


@dataclass(frozen=True)
class Variant:
    """The default recipe with one thing changed.

    Attributes:
        name: the row's, such as ``no-mask``.
        title: the same in words.
        recipe: what is trained.
        weights: kind of weights it starts from.
    """

    name: str
    title: str
    recipe: Recipe
    weights: str


def variants(recipe: Recipe, files: Mapping[str, Path] | None = None) -> list[Variant]:
    """The default, and every variant that differs from it in one thing.

    Args:
        recipe: the default.
        files: C2L weights by network, where they are not those that come with the package.

    Raises:
        RecipeError: the recipe is of a network without mask, attention and histogram.
    """
    if not recipe.network.name.startswith("mask-efficientnet"):
        raise RecipeError(
            f"recipe {recipe.name}: {recipe.network.name} has no mask branch to leave out; the ablation "
            "needs a mask-efficientnet"
        )
    weights = recipe.network.weights if recipe.network.weights in KINDS else "c2l"
    own = [Variant(DEFAULT, "default", recipe, weights)]
    own += [
        Variant(name, title, _changed(recipe, section, **fields), weights)
        for name, title, section, fields in _changes(recipe)
    ]
    for kind in KINDS:
        if kind != weights:
            started = starting_from(recipe, kind, files or {})
            own.append(Variant(f"weights-{kind}", f"weights: {kind}", started, kind))
    return own


def _changes(recipe: Recipe) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, title, section and new values of each variant of the recipe but its weights."""
    for switch, words in _SWITCHES.items():
        on = getattr(recipe.network, switch)
        yield (
            f"{'no' if on else 'with'}-{switch}",
            f"{'no' if on else 'with'} {words}",
            "network",
            {switch: not on},
        )
    crop = recipe.framing.crop
    yield (
        f"{'no' if crop else 'with'}-crop",
        "framing: the whole picture" if crop else "framing: crop to the lungs",
        "framing",
        {"crop": not crop},
    )
    for normalisation in get_args(Normalisation):
        if normalisation != recipe.framing.normalisation:
            name = f"normalisation-{normalisation}"
            yield name, f"normalisation: {normalisation}", "framing", {"normalisation": normalisation}
    papers, none = _augmentations(recipe.augmentation)
    yield "augmentation-paper", "augmentation: the paper's four", "augmentation", papers
    yield "augmentation-none", "augmentation: none", "augmentation", none
    painted = recipe.synthesis.slices_per_epoch
    yield (
        f"{'no' if painted else 'with'}-synthesis",
        f"{'no' if painted else 'with'} lesion synthesis",
        "synthesis",
        {"slices_per_epoch": 0 if painted else _PAINTED},
    )


def _augmentations(section: AugmentationSection) -> tuple[dict[str, float], dict[str, float]]:
    """The paper's four alone, and none at all."""
    none = dict.fromkeys(AugmentationSection.model_fields, 0.0) | {"smallest_crop": 1.0}
    return none | {name: getattr(section, name) for name in _PAPERS}, none


def _changed(recipe: Recipe, section: str, **fields: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})


def ablation_tasks(
    recipe: Recipe,
    manifest: Manifest,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    protocols: Sequence[str] = PROTOCOLS,
    left_out: str | None = None,
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of the ablation.

    Args:
        recipe: the default.
        manifest: the data set, whose sources decide what is left out.
        seeds: of the trainings.
        protocols: ``official``, judged on val and test, and ``left-out``, judged on sources not trained on.
        left_out: sources to leave out, as ``leave-source-out:`` takes them; chosen by size unless given.
        files: C2L weights by network, where they are not those that come with the package.

    Raises:
        RecipeError: unknown protocol, or the recipe has nothing to ablate.
        DataError: no source can be left out.
    """
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown:
        raise RecipeError(f"protocol {unknown[0]!r} is unknown; there are {', '.join(PROTOCOLS)}")
    tasks = []
    for protocol in protocols:
        outside = protocol == LEFT_OUT
        split = f"leave-source-out:{left_out or largest_sources(manifest)}" if outside else "official"
        for variant in variants(recipe, files):
            for seed in seeds:
                identity = Identity("ablation", protocol, variant.name, variant.title, seed)
                parts = ("test",) if outside else ("val", "test")
                tasks.append(Task(identity, variant.recipe, variant.weights, split, parts))
    return tasks


def largest_sources(manifest: Manifest) -> str:
    """The sources to leave out, by size: enough to judge on, and enough left to train on.

    The largest source that holds at least ten slices of both labels and at most half of each; where no source
    does, the largest source of each label among those that hold one label alone and at most half of it.

    Returns:
        As ``leave-source-out:`` takes them.

    Raises:
        DataError: there is none; the message says which sources there are.
    """
    counts = Counter((record.source, record.label) for record in manifest if record.label is not None)
    totals = Counter(record.label for record in manifest)
    # A plus joins sources in a specification, so that a source with one in its name cannot be named.
    sources = sorted({record.source for record in manifest if "+" not in record.source})

    def size(source: str, label: Label) -> int:
        """Slices of one label, or 0 where they are too few or too many to be left out."""
        count = counts[source, label]
        return count if _LEAST_SLICES <= count <= totals[label] / 2 else 0

    both = [source for source in sources if all(size(source, label) for label in Label)]
    if both:
        return glob.escape(max(both, key=lambda source: sum(size(source, label) for label in Label)))
    chosen = []
    for label in Label:
        alone = [
            source
            for source in sources
            if size(source, label) and not any(counts[source, other] for other in Label if other is not label)
        ]
        if not alone:
            raise DataError(
                f"{manifest.root}: no source is large enough, and small enough, to be left out; name some of "
                f"{name_some(sources, 12)} with --left-out, or leave the protocol {LEFT_OUT} out"
            )
        chosen.append(glob.escape(max(alone, key=lambda source: size(source, label))))
    return "+".join(chosen)
