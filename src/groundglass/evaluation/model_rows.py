"""Rows of a table of models: each a network, or the same recipe trained from several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundglass.errors import DataError
from groundglass.evaluation.part import printable
from groundglass.evaluation.protocol import TrainedRun
from groundglass.inference.bundle import DEFAULT


@dataclass(frozen=True)
class RunDescription:
    """One run: its path as given, or ``installed``, and the seed of its training."""

    path: str
    seed: int


@dataclass(frozen=True)
class RowDescription:
    """Which networks a row stands for.

    Attributes:
        name: of the row.
        recipe: name of the recipe.
        network: name of the network.
        split: that it was trained on.
        runs: the runs.
    """

    name: str
    recipe: str
    network: str
    split: str
    runs: tuple[RunDescription, ...]

    @property
    def seeds(self) -> str:
        """The seeds, comma-separated."""
        return ", ".join(str(run.seed) for run in self.runs)


@dataclass(frozen=True)
class ModelRow:
    """One row.

    Attributes:
        name: what the table calls it.
        runs: trained networks of one recipe, at least one; the row's figures are their mean.
    """

    name: str
    runs: tuple[TrainedRun, ...]

    @classmethod
    def of(cls, name: str, runs: Sequence[TrainedRun]) -> ModelRow:
        """A row of runs that belong together.

        Raises:
            DataError: a run stands in it twice, or runs differ in their recipe or split.
        """
        first, seen = runs[0], set()
        for run in runs:
            if run.path.resolve() in seen:
                raise DataError(f"{run.path}: stands in the row {name} twice")
            seen.add(run.path.resolve())
            for what, one, other in (
                ("recipe", run.recipe, first.recipe),
                ("split", run.split_spec, first.split_spec),
            ):
                if one != other:
                    raise DataError(
                        f"{run.path}: differs in its {what} from {first.path}, so they are no two seeds of "
                        f"one row; give them names of their own, NAME={run.path}"
                    )
        return cls(name, tuple(runs))

    @property
    def description(self) -> RowDescription:
        """What can be said of the row in a result."""
        first = self.runs[0]
        return RowDescription(
            self.name,
            first.recipe.name,
            first.recipe.network.name,
            first.split_spec,
            tuple(RunDescription(_place(run.path), run.seed) for run in self.runs),
        )


def _place(path: Path) -> str:
    """A path for a record; where the installation lies is nobody's business."""
    return "installed" if path == DEFAULT else printable(path)
