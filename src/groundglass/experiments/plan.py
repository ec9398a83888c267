"""Which trainings an experiment consists of: Table I, the ablation, convergence, and one recipe over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

from groundglass.errors import RecipeError
from groundglass.experiments.results import DEFAULT, LEFT_OUT, PAPER, PROTOCOLS, Identity
from groundglass.files import name_some
from groundglass.imaging.crop import Normalisation
from groundglass.models.catalogue import find
from groundglass.training.recipe import RATES, AugmentationSection, Recipe, load_recipe

KINDS = ("none", "imagenet", "c2l")
"""Weights that experiments compare."""

NETWORKS = ("vgg-16", "resnet-50", "densenet-121", "efficientnet-b0", "mask-efficientnet-b0")
"""Table I's rows."""

LEARNERS = ("resnet-18", "efficientnet-lite0")
"""Networks whose convergence is compared; ResNet-18 is the paper's."""

LARGEST_SOURCES = "2020.02.25.20021568+medpix"
"""COVID-CT's largest publication of COVID slices, and its largest collection, of NonCOVID slices alone."""

_FOLDED, _FOLDS = ("random", "patients"), 5
# Families of Table I that are tested by patient in folds, unless networks are named.
_BY_PATIENT = ("efficientnet", "mask-efficientnet")
# Slices of lesion synthesis per epoch where the default has none.
_PAINTED = 320
_SWITCHES = {"mask": "mask branch", "attention": "attention (channel gates)", "histogram": "histogram term"}
# Augmentations of the paper's section III-A.
_PAPERS = ("translation", "rotation", "mirror", "noise")


@dataclass(frozen=True)
class Task:
    """One training of an experiment: a recipe on a split, and the parts evaluated."""

    identity: Identity
    recipe: Recipe
    split: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its place below an experiment's folders."""
        return self.identity.name

    @property
    def weights(self) -> str:
        """Kind of the recipe's weights; a file is taken for C2L's."""
        return _kind(self.recipe)

    @property
    def allow_overlap(self) -> bool:
        """Whether patients may be in several parts of the split."""
        return self.split.startswith("random")


class Variant(NamedTuple):
    """A recipe, and the row and title under which it is compared."""

    row: str
    title: str
    recipe: Recipe


def chosen(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """The tasks that match one of the patterns, or all; seed by seed, so that rows can soon be compared.

    A pattern with ``*`` means a row, ``PROTOCOL/ROW``, or a whole name.

    Raises:
        RecipeError: a pattern matches nothing.
    """

    def means(pattern: str, own: Identity) -> bool:
        return any(fnmatchcase(name, pattern) for name in (own.row, f"{own.protocol}/{own.row}", own.name))

    for pattern in only:
        if not any(means(pattern, task.identity) for task in tasks):
            rows = list(dict.fromkeys(task.identity.row for task in tasks))
            raise RecipeError(f"--only {pattern}: matches no run; rows are {name_some(rows, 20)}")
    kept = [task for task in tasks if not only or any(means(pattern, task.identity) for pattern in only)]
    return sorted(kept, key=lambda task: task.identity.seed)


def table1_tasks(
    protocols: Sequence[str] = tuple(PROTOCOLS),
    networks: Sequence[str] | None = None,
    weights: Sequence[str] = KINDS[1:],
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
) -> list[Task]:
    """Every training of Table I: each network by the paper's recipe, VGG with a smaller learning rate.

    ``networks`` are all five unless given, by protocol ``patients`` then only the two EfficientNets.

    Raises:
        GroundglassError: unknown protocol or network, or an override of what the rows decide.
    """
    tasks = []
    for protocol in protocols:
        by_patient = [name for name in NETWORKS if find(name).family in _BY_PATIENT]
        own = networks or (by_patient if protocol == "patients" else NETWORKS)
        rows = _networks(own, weights, overrides)
        tasks += _tasks("table1", protocol, rows, seeds, protocol_splits(protocol), ("val", "test"))
    return tasks


def convergence_tasks(
    networks: Sequence[str] = LEARNERS,
    weights: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Sequence[str] = (),
    *,
    split: str = "official",
) -> list[Task]:
    """Every training of the comparison of weights, as :func:`table1_tasks`; no test slice is evaluated by any."""
    rows = _networks(networks, weights, overrides)
    return _tasks("convergence", _folder(split), rows, seeds, {None: split}, ())


def seeds_tasks(recipe: Recipe, split: str, seeds: Sequence[int], parts: Sequence[str]) -> list[Task]:
    """One recipe on one split, trained with several seeds and evaluated on the parts named."""
    row = Variant(_folder(recipe.name), recipe.name, recipe)
    return _tasks("seeds", _folder(split), [row], seeds, {None: split}, tuple(parts))


def ablation_tasks(
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    protocols: Sequence[str] = tuple(PROTOCOLS),
    left_out: str = LARGEST_SOURCES,
) -> list[Task]:
    """Every training of the ablation: the recipe, and with one thing changed at a time.

    Protocols are those of Table I, and ``left-out``, which tests on sources that it does not train on, ``left_out``
    as ``leave-source-out:`` takes them.

    Raises:
        RecipeError: unknown protocol, or the recipe has no mask branch, attention and histogram to leave out.
    """
    tasks = []
    for protocol in protocols:
        parts = ("test",) if protocol == LEFT_OUT else ("val", "test")
        tasks += _tasks("ablation", protocol, variants(recipe), seeds, protocol_splits(protocol, left_out), parts)
    return tasks


def variants(recipe: Recipe) -> Iterator[Variant]:
    """The default and each variant that differs from it in one thing.

    Raises:
        RecipeError: the recipe is of a network without mask, attention and histogram.
    """
    if find(recipe.network.name).family != "mask-efficientnet":
        lacks = f"{recipe.network.name} has no mask branch to leave out"
        raise RecipeError(f"recipe {recipe.name}: {lacks}; the ablation needs a mask-efficientnet")
    yield Variant(DEFAULT, "default", recipe)
    for row, title, section, fields in _changes(recipe):
        changed = getattr(recipe, section).model_copy(update=fields)
        if changed != getattr(recipe, section):
            yield Variant(row, title, recipe.model_copy(update={section: changed}))
    for kind in KINDS:
        if kind != _kind(recipe):
            yield Variant(f"weights-{kind}", f"weights: {kind}", _starting_from(recipe, kind))


def _changes(recipe: Recipe) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Row, title, section and new values of each variant of the recipe but its weights."""
    for switch, words in _SWITCHES.items():
        on = getattr(recipe.network, switch)
        change = "no" if on else "with"
        yield f"{change}-{switch}", f"{change} {words}", "network", {switch: not on}
    # The others' blocks have gates of their own.
    if recipe.network.attention and "lite" in recipe.network.name:
        yield "gates-blocks", "attention inside the blocks", "network", {"gates": "blocks"}
    crop = recipe.preprocessing.crop
    change = "no" if crop else "with"
    yield f"{change}-crop", f"{change} crop to the lungs", "preprocessing", {"crop": not crop}
    for way in get_args(Normalisation):
        yield f"normalisation-{way}", f"normalisation: {way}", "preprocessing", {"normalisation": way}
    none = dict.fromkeys(AugmentationSection.model_fields, 0.0) | {"smallest_crop": 1.0}
    papers = none | {name: getattr(recipe.augmentation, name) for name in _PAPERS}
    yield "augmentation-paper", "augmentation: the paper's four", "augmentation", papers
    yield "augmentation-none", "augmentation: none", "augmentation", none
    change, slices = ("no", 0) if recipe.synthesis.slices_per_epoch else ("with", _PAINTED)
    yield f"{change}-synthesis", f"{change} lesion synthesis", "synthesis", {"slices_per_epoch": slices}


def _tasks(
    experiment: str,
    protocol: str,
    rows: Iterable[Variant],
    seeds: Sequence[int],
    splits: Mapping[int | None, str],
    parts: tuple[str, ...],
) -> list[Task]:
    """Every row with every seed on every split, by fold where there are folds; the rows of a seed side by side."""
    tasks = []
    for seed, (fold, split), row in product(seeds, splits.items(), rows):
        folds = None if fold is None else len(splits)
        identity = Identity(experiment, protocol, row.row, row.title, seed, fold, folds)
        tasks.append(Task(identity, row.recipe, split, parts))
    return tasks


def protocol_splits(protocol: str, left_out: str | None = None) -> dict[int | None, str]:
    """A protocol's splits by fold. Folds over slices are the same for all seeds, those over patients are drawn anew.

    With ``left_out``, which are sources, there is a protocol for these. A RecipeError where there is none of the name.
    """
    known = [*PROTOCOLS, *([LEFT_OUT] if left_out else ())]
    if protocol not in known:
        raise RecipeError(f"protocol {protocol!r} is unknown; there are {', '.join(known)}")
    if protocol not in _FOLDED:
        return {None: f"leave-source-out:{left_out}" if protocol == LEFT_OUT else protocol}
    seed = ":0" if protocol == "random" else ""
    return {fold: f"{protocol}:{fold}/{_FOLDS}{seed}" for fold in range(1, _FOLDS + 1)}


def _networks(networks: Iterable[str], weights: Sequence[str], overrides: Sequence[str]) -> Iterator[Variant]:
    """The paper's recipe with each network from each kind of weights, or from a file of C2L weights."""
    options = {"network.name": "--networks", "network.weights": "--weights"}
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in options:
            raise RecipeError(f"--set {override}: the rows decide {field}; use {options[field]}")
    for kind in weights:
        if kind not in KINDS and not Path(kind).is_file():
            raise RecipeError(f"weights {kind!r}: no such file; kinds are {', '.join(KINDS)}")
    if len({kind if kind in KINDS else "c2l" for kind in weights}) < len(weights):
        raise RecipeError("--weights: c2l and each file are rows of one name; give every one an --output of its own")
    for network in networks:
        entry = find(network)
        rate = [f"optimiser.lr={RATES[entry.family]}"] if entry.family in RATES else []
        recipe = load_recipe(PAPER, [f"network.name={entry.name}", *rate, *overrides])
        for kind in weights:
            started = _starting_from(recipe, kind)
            yield Variant(f"{network}-{_kind(started)}", f"{network} ({_kind(started)})", started)


def _starting_from(recipe: Recipe, weights: str) -> Recipe:
    return recipe.model_copy(update={"network": recipe.network.model_copy(update={"weights": weights})})


def _folder(split: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", split)


def _kind(recipe: Recipe) -> str:
    return recipe.network.weights if recipe.network.weights in KINDS else "c2l"
