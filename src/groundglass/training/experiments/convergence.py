"""The trainings behind the paper's claim that C2L converges faster than ImageNet's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from groundglass.evaluation.outcome import Identity
from groundglass.models.catalogue import find
from groundglass.training.experiments.task import KINDS, Task, refuse_decided, starting_from
from groundglass.training.recipe import load_recipe

NETWORKS = ("resnet-18", "efficientnet-lite0")
"""The paper's network, and the one whose ImageNet weights come with the installation."""

_DECIDED = {"network.name": "--networks", "network.weights": "--weights"}


def convergence_tasks(
    networks: Sequence[str] = NETWORKS,
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
    refuse_decided(overrides, _DECIDED)
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
