"""One training of an experiment and how it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from groundglass.data.manifest import name_some
from groundglass.errors import RecipeError
from groundglass.evaluation.outcome import Identity
from groundglass.training.recipe import Recipe

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
