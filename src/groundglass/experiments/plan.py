"""Which trainings an experiment consists of: Table I, the ablation, convergence, and one recipe over seeds."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, get_args

from groundglass.data.manifest import Label, Manifest
from groundglass.errors import DataError, RecipeError
from groundglass.experiments.results import DEFAULT, LEFT_OUT, PROTOCOLS, Identity
from groundglass.files import name_some
from groundglass.imaging.crop import Normalisation
from groundglass.models.catalogue import find
from groundglass.training.recipe import AugmentationSection, Recipe, load_recipe

KINDS = ("none", "imagenet", "c2l")
"""Weights that experiments compare."""

NETWORKS = ("vgg-16", "resnet-50", "densenet-121", "efficientnet-lite0", "mask-efficientnet-lite0")
"""Table I's rows, with Lite0 in place of the paper's EfficientNet-B0."""

LEARNERS = ("resnet-18", "efficientnet-lite0")
"""Networks whose convergence is compared; ResNet-18 is the paper's."""

_IN_FOLDS = ("efficientnet", "mask-efficientnet")
# A smaller source says too little of those that are not trained on.
_LEAST_SLICES = 10
# Slices of lesion synthesis per epoch where the default has none.
_PAINTED = 320
_SWITCHES = {"mask": "mask branch", "attention": "attention (channel gates)", "histogram": "histogram term"}
# The augmentations of the paper's section III-A.
_PAPERS = ("translation", "rotation", "mirror", "noise")


@dataclass(frozen=True)
class Task:
    """One training of an experiment: a recipe from a kind of weights on a split, and the parts evaluated.

    ``recipe`` may name a file of weights; ``allow_overlap`` lets patients be in several parts of the split.
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

    def matches(self, pattern: str) -> bool:
        """Whether a pattern with ``*`` means its row, ``PROTOCOL/ROW``, or its whole name."""
        own = self.identity
        return any(fnmatchcase(name, pattern) for name in (own.row, f"{own.protocol}/{own.row}", own.name))


def chosen(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """The tasks that match one of the patterns, or all; seed by seed, so that rows can soon be compared.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    for pattern in only:
        if not any(task.matches(pattern) for task in tasks):
            rows = list(dict.fromkeys(task.identity.row for task in tasks))
            raise RecipeError(f"--only {pattern}: matches no run; rows are {name_some(rows, 20)}")
    kept = [task for task in tasks if not only or any(task.matches(pattern) for pattern in only)]
    protocols = list(dict.fromkeys(task.identity.protocol for task in tasks))

    def place(task: Task) -> tuple[int, int, int]:
        own = task.identity
        return own.seed, protocols.index(own.protocol), own.fold or 0

    return sorted(kept, key=place)


def table1_tasks(
    protocols: Sequence[str] = tuple(PROTOCOLS),
    networks: Sequence[str] | None = None,
    weights: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    *,
    folds: int = 5,
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of Table I: each network by its family's recipe, which differ in VGG's learning rate alone.

    ``networks`` are all five unless given, and by protocol ``patients``, in so many ``folds``, then only the two
    EfficientNets; ``files`` are C2L weights by network, where they are not those that come with the package.

    Raises:
        GroundglassError: unknown protocol or network, or an override of what the rows decide.
    """
    _check_protocols(protocols, PROTOCOLS)
    tasks = []
    for protocol in protocols:
        # One random split for all seeds, so that all rows are tested on the same slices.
        splits: dict[int | None, str] = {None: "random:0" if protocol == "paper" else protocol}
        if protocol == "patients":
            splits = {fold: f"patients:{fold}/{folds}" for fold in range(1, folds + 1)}
        for network in networks or NETWORKS:
            if networks is None and protocol == "patients" and find(network).family not in _IN_FOLDS:
                continue
            for kind, recipe in _started(network, weights, overrides, files):
                row, title = f"{network}-{kind}", f"{network} ({kind})"
                for seed, (fold, split) in product(seeds, splits.items()):
                    identity = Identity("table1", protocol, row, title, seed, fold, folds if fold else None)
                    tasks.append(Task(identity, recipe, kind, split, allow_overlap=protocol == "paper"))
    return tasks


def convergence_tasks(
    networks: Sequence[str] = LEARNERS,
    weights: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    *,
    split: str = "official",
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of the comparison of weights, as :func:`table1_tasks`; no test slice is evaluated by any."""
    tasks = []
    for network in networks:
        for kind, recipe in _started(network, weights, overrides, files):
            for seed in seeds:
                row, title = f"{network}-{kind}", f"{network} ({kind})"
                identity = Identity("convergence", _folder(split), row, title, seed)
                tasks.append(Task(identity, recipe, kind, split, parts=()))
    return tasks


def seeds_tasks(recipe: Recipe, split: str, seeds: Sequence[int], parts: Sequence[str]) -> list[Task]:
    """One recipe on one split, trained with several seeds and evaluated on the parts named."""
    return [
        Task(
            Identity("seeds", _folder(split), recipe.name, recipe.name, seed),
            recipe,
            _kind(recipe),
            split,
            tuple(parts),
        )
        for seed in seeds
    ]


def ablation_tasks(
    recipe: Recipe,
    manifest: Manifest,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    protocols: Sequence[str] = ("official", LEFT_OUT),
    left_out: str | None = None,
    files: Mapping[str, Path] | None = None,
) -> list[Task]:
    """Every training of the ablation: the recipe, and with one thing changed at a time.

    By ``official`` runs are evaluated on val and test, by ``left-out`` tested on sources not trained on: those
    that ``left_out`` names as ``leave-source-out:`` takes them, else the manifest's :func:`largest_sources`.

    Raises:
        RecipeError: unknown protocol, or the recipe has no mask branch, attention and histogram to leave out.
        DataError: no source can be left out.
    """
    _check_protocols(protocols, ("official", LEFT_OUT))
    tasks = []
    for protocol in protocols:
        outside = protocol == LEFT_OUT
        split = f"leave-source-out:{left_out or largest_sources(manifest)}" if outside else protocol
        parts = ("test",) if outside else ("val", "test")
        for (name, title, variant, weights), seed in product(variants(recipe, files), seeds):
            identity = Identity("ablation", protocol, name, title, seed)
            tasks.append(Task(identity, variant, weights, split, parts))
    return tasks


def variants(
    recipe: Recipe, files: Mapping[str, Path] | None = None
) -> Iterator[tuple[str, str, Recipe, str]]:
    """Row, title, recipe and kind of weights of the default and of each variant that differs in one thing.

    Raises:
        RecipeError: the recipe is of a network without mask, attention and histogram.
    """
    if find(recipe.network.name).family != "mask-efficientnet":
        raise RecipeError(
            f"recipe {recipe.name}: {recipe.network.name} has no mask branch to leave out; the ablation needs "
            "a mask-efficientnet"
        )
    weights = _kind(recipe)
    yield DEFAULT, "default", recipe, weights
    for name, title, section, fields in _changes(recipe):
        changed = getattr(recipe, section).model_copy(update=fields)
        yield name, title, recipe.model_copy(update={section: changed}), weights
    for kind in KINDS:
        if kind != weights:
            yield f"weights-{kind}", f"weights: {kind}", _starting_from(recipe, kind, files), kind


def _changes(recipe: Recipe) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Row, title, section and new values of each variant of the recipe but its weights."""
    for switch, words in _SWITCHES.items():
        on = getattr(recipe.network, switch)
        change = "no" if on else "with"
        yield f"{change}-{switch}", f"{change} {words}", "network", {switch: not on}
    crop = recipe.preprocessing.crop
    change = "no" if crop else "with"
    yield f"{change}-crop", f"{change} crop to the lungs", "preprocessing", {"crop": not crop}
    for way in get_args(Normalisation):
        if way != recipe.preprocessing.normalisation:
            yield f"normalisation-{way}", f"normalisation: {way}", "preprocessing", {"normalisation": way}
    none = dict.fromkeys(AugmentationSection.model_fields, 0.0) | {"smallest_crop": 1.0}
    papers = none | {name: getattr(recipe.augmentation, name) for name in _PAPERS}
    yield "augmentation-paper", "augmentation: the paper's four", "augmentation", papers
    yield "augmentation-none", "augmentation: none", "augmentation", none
    painted = recipe.synthesis.slices_per_epoch
    change, slices = ("no", 0) if painted else ("with", _PAINTED)
    yield f"{change}-synthesis", f"{change} lesion synthesis", "synthesis", {"slices_per_epoch": slices}


def largest_sources(manifest: Manifest) -> str:
    """The sources to leave out, by size: enough to test on, and enough left to train on.

    The largest source that holds at least ten slices of both labels and at most half of each; where no source
    does, the largest source of each label among those that hold one label alone and at most half of it.

    Returns:
        As ``leave-source-out:`` takes them.

    Raises:
        DataError: there is none.
    """
    # A plus joins sources in a specification, so that a source with one in its name cannot be named.
    records = [record for record in manifest if record.label is not None and "+" not in record.source]
    counts = Counter((record.source, record.label) for record in records)
    totals = Counter(record.label for record in manifest)
    sources = sorted({record.source for record in records})

    def fits(source: str, label: Label) -> bool:
        return _LEAST_SLICES <= counts[source, label] <= totals[label] / 2

    both = [source for source in sources if all(fits(source, label) for label in Label)]
    if both:
        return glob.escape(max(both, key=lambda source: sum(counts[source, label] for label in Label)))
    largest = []
    for label in Label:
        others = [other for other in Label if other is not label]
        alone = [each for each in sources if fits(each, label) and not any(counts[each, o] for o in others)]
        if not alone:
            raise DataError(
                f"{manifest.root}: no source is large enough, and small enough, to be left out; name some of "
                f"{name_some(sources, 12)} with --left-out, or leave the protocol {LEFT_OUT} out"
            )
        largest.append(glob.escape(max(alone, key=lambda source: counts[source, label])))
    return "+".join(largest)


def _check_protocols(protocols: Sequence[str], known: Iterable[str]) -> None:
    for protocol in protocols:
        if protocol not in known:
            raise RecipeError(f"protocol {protocol!r} is unknown; there are {', '.join(known)}")


def _started(
    network: str, weights: Sequence[str], overrides: Sequence[str], files: Mapping[str, Path] | None
) -> Iterator[tuple[str, Recipe]]:
    """The network's recipe from each kind of weights."""
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in {"network.name", "network.weights"}:
            option = "--networks" if field == "network.name" else "--weights"
            raise RecipeError(f"--set {override}: the rows decide {field}; use {option}")
    recipe = load_recipe(find(network).name, overrides)
    for kind in weights:
        yield kind, _starting_from(recipe, kind, files)


def _starting_from(recipe: Recipe, weights: str, files: Mapping[str, Path] | None) -> Recipe:
    if weights not in KINDS:
        raise RecipeError(f"weights {weights!r} are of no known kind; there are {', '.join(KINDS)}")
    given = (files or {}).get(recipe.network.name) if weights == "c2l" else None
    section = recipe.network.model_copy(update={"weights": str(given) if given else weights})
    return recipe.model_copy(update={"network": section})


def _kind(recipe: Recipe) -> str:
    """Kind of a recipe's weights; a file is taken for C2L's."""
    return recipe.network.weights if recipe.network.weights in KINDS else "c2l"


def _folder(split: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", split)
