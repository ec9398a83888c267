"""The trainings behind the paper's claim that C2L converges faster than ImageNet's weights.

One training of an experiment and how it is judged.

The trainings behind the paper's Table I: networks from different weights under several protocols.

The trainings of the ablation: the default recipe with one thing changed at a time.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from groundglass.data.manifest import Label, Manifest
from groundglass.errors import DataError, RecipeError
from groundglass.experiments.results import Identity
from groundglass.experiments.tables import DEFAULT, LEFT_OUT, PROTOCOLS
from groundglass.files import name_some
from groundglass.imaging.crop import Normalisation
from groundglass.models.catalogue import find
from groundglass.training.recipe import AugmentationSection, Recipe, load_recipe

KINDS = ("none", "imagenet", "c2l")
"""Weights that experiments compare."""


@dataclass(frozen=True)
class Task:
    """One training of an experiment.

    Attributes:
        identity: which run of which experiment; its name is that of the run's folder and of its result.
        recipe: what is trained and how.
        weights: kind of weights it starts from; the recipe may name a file of that kind.
        split: which slices train, validate and test.
        parts: that the trained network is judged on.
        allow_overlap: patients may stand in several parts of the split.
    """

    identity: Identity
    recipe: Recipe
    weights: str
    split: str
    parts: tuple[str, ...] = ("val", "test")
    allow_overlap: bool = False

    @property
    def name(self) -> str:
        """Its place below an experiment's folders."""
        return self.identity.name


def starting_from(recipe: Recipe, weights: str, files: Mapping[str, Path]) -> Recipe:
    """The recipe with its network starting from a kind of weights.

    Args:
        recipe: names the network.
        weights: kind of weights.
        files: C2L weights by network, where they are not those that come with the package.

    Raises:
        RecipeError: the kind of weights is unknown.
    """
    if weights not in KINDS:
        raise RecipeError(f"weights {weights!r} are of no known kind; there are {', '.join(KINDS)}")
    given = files.get(recipe.network.name) if weights == "c2l" else None
    section = recipe.network.model_copy(update={"weights": str(given) if given else weights})
    return recipe.model_copy(update={"network": section})


def refuse_decided(overrides: Iterable[str], decided: Mapping[str, str]) -> None:
    """Refuse overrides of fields that the rows of a table decide.

    Args:
        overrides: as ``--set`` takes them.
        decided: field to the option that decides it.

    Raises:
        RecipeError: an override names such a field.
    """
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in decided:
            raise RecipeError(f"--set {override}: the rows decide {field}; use {decided[field]}")


def chosen(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """The tasks that match a pattern, in the order in which they are best worked off.

    All rows of one seed come before the next seed, so that a list that is broken off has rows to compare.

    Args:
        tasks: of an experiment.
        only: patterns with ``*`` for rows, ``PROTOCOL/ROW`` or whole names; all tasks where empty.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    for pattern in only:
        if not any(_matches(task, pattern) for task in tasks):
            rows = list(dict.fromkeys(task.identity.row for task in tasks))
            raise RecipeError(f"--only {pattern}: matches no run; rows are {name_some(rows, 20)}")
    kept = [task for task in tasks if not only or any(_matches(task, pattern) for pattern in only)]
    protocols = list(dict.fromkeys(task.identity.protocol for task in tasks))
    return sorted(
        kept,
        key=lambda task: (
            task.identity.seed,
            protocols.index(task.identity.protocol),
            task.identity.fold or 0,
        ),
    )


def _matches(task: Task, pattern: str) -> bool:
    identity = task.identity
    names = (identity.row, f"{identity.protocol}/{identity.row}", task.name)
    return any(fnmatchcase(name, pattern) for name in names)


NETWORKS = ("vgg-16", "resnet-50", "densenet-121", "efficientnet-lite0", "mask-efficientnet-lite0")
"""The paper's rows; its EfficientNet is of unknown size, here the one the default network is built on."""

FOLDS = 5

_IN_FOLDS = ("efficientnet", "mask-efficientnet")
"""Families that are also judged by folds over patients, where no network is named."""

_DECIDED = {"network.name": "--networks", "network.weights": "--weights"}


def table1_tasks(
    protocols: Sequence[str] = tuple(PROTOCOLS),
    networks: Sequence[str] | None = None,
    weights: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    *,
    split_seed: int = 0,
    folds: int = FOLDS,
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of the table.

    Each network is trained by its family's recipe; they are the same but for VGG's smaller learning rate.

    Args:
        protocols: among ``paper``, ``official`` and ``patients``.
        networks: all five unless given; by ``patients`` then only the two EfficientNets.
        weights: kinds that each network starts from.
        seeds: of the trainings.
        overrides: of every recipe, as ``--set`` takes them.
        split_seed: of the ``paper`` protocol's split, which is the same for all seeds of the trainings.
        folds: of the ``patients`` protocol.
        files: C2L weights by network, where they are not those that come with the package.

    Raises:
        RecipeError: unknown protocol, or an override of what the rows decide.
        GroundglassError: unknown network.
    """
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown:
        raise RecipeError(f"protocol {unknown[0]!r} is unknown; there are {', '.join(PROTOCOLS)}")
    refuse_decided(overrides, _DECIDED)
    tasks = []
    for protocol in protocols:
        for network in networks or NETWORKS:
            if networks is None and protocol == "patients" and find(network).family not in _IN_FOLDS:
                continue
            recipe = load_recipe(find(network).name, overrides)
            for kind in weights:
                started = starting_from(recipe, kind, files or {})
                for seed in seeds:
                    for split, fold in _splits(protocol, split_seed, folds):
                        identity = Identity(
                            "table1",
                            protocol,
                            f"{network}-{kind}",
                            f"{network} ({kind})",
                            seed,
                            fold,
                            folds if fold else None,
                        )
                        tasks.append(Task(identity, started, kind, split, allow_overlap=protocol == "paper"))
    return tasks


def _splits(protocol: str, split_seed: int, folds: int) -> Iterator[tuple[str, int | None]]:
    """Specifications of the splits of a protocol, and the fold each one tests."""
    if protocol == "paper":
        yield f"random:{split_seed}", None
    elif protocol == "official":
        yield "official", None
    else:
        for fold in range(1, folds + 1):
            yield f"patients:{fold}/{folds}", fold


ABLATION_PROTOCOLS = ("official", LEFT_OUT)

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
    crop = recipe.preprocessing.crop
    yield (
        f"{'no' if crop else 'with'}-crop",
        "preprocessing: the whole picture" if crop else "preprocessing: crop to the lungs",
        "preprocessing",
        {"crop": not crop},
    )
    for normalisation in get_args(Normalisation):
        if normalisation != recipe.preprocessing.normalisation:
            name = f"normalisation-{normalisation}"
            yield name, f"normalisation: {normalisation}", "preprocessing", {"normalisation": normalisation}
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
    protocols: Sequence[str] = ABLATION_PROTOCOLS,
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
    unknown = [protocol for protocol in protocols if protocol not in ABLATION_PROTOCOLS]
    if unknown:
        raise RecipeError(f"protocol {unknown[0]!r} is unknown; there are {', '.join(ABLATION_PROTOCOLS)}")
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


NETWORKS_CONVERGENCE = ("resnet-18", "efficientnet-lite0")
"""The paper's network, and the one whose ImageNet weights come with the installation."""

_DECIDED_CONVERGENCE = {"network.name": "--networks", "network.weights": "--weights"}


def convergence_tasks(
    networks: Sequence[str] = NETWORKS_CONVERGENCE,
    weights: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    *,
    split: str = "official",
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of the comparison; no test slice is judged by any.

    Args:
        networks: names of registry entries.
        weights: kinds that each network starts from.
        seeds: of the trainings.
        overrides: of every recipe, as ``--set`` takes them.
        split: whose validation part the curves are of.
        files: C2L weights by network, where they are not those that come with the package.

    Raises:
        RecipeError: an override of what the curves decide.
        GroundglassError: unknown network.
    """
    refuse_decided(overrides, _DECIDED_CONVERGENCE)
    protocol = re.sub(r"[^\w.-]+", "-", split)
    return [
        Task(
            Identity("convergence", protocol, f"{network}-{kind}", f"{network} ({kind})", seed),
            starting_from(load_recipe(find(network).name, overrides), kind, files or {}),
            kind,
            split,
            parts=(),
        )
        for network in networks
        for kind in weights
        for seed in seeds
    ]
