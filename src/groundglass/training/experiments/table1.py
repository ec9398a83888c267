"""The trainings behind the paper's Table I: networks from different weights under several protocols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from groundglass.errors import RecipeError
from groundglass.evaluation.outcome import Identity
from groundglass.evaluation.table1 import PROTOCOLS
from groundglass.models.catalogue import find
from groundglass.training.experiments.task import KINDS, Task, refuse_decided, starting_from
from groundglass.training.recipe import load_recipe

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
