"""The curve of probability along a series as one line of text."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def sparkline(
    at: Sequence[float], probability: Sequence[float], width: int = 40, *, unicode: bool = True
) -> str:
    """A curve as one line of text: one character per slice, or per stretch where there are more of them.

    Args:
        at: where each slice lies, not falling.
        probability: 0 to 1; of a stretch the mean is shown, and nothing where no slice lies in it.
        width: most characters.
        unicode: block characters; otherwise ASCII.
    """
    values: list[float | None] = list(probability)
    if len(values) > width:
        values = _stretches(at, probability, width)
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    return "".join(
        " " if value is None else blocks[min(int(max(value, 0.0) * len(blocks)), len(blocks) - 1)]
        for value in values
    )


def _stretches(at: Sequence[float], probability: Sequence[float], width: int) -> list[float | None]:
    first, span = at[0], at[-1] - at[0]
    sums, counts = [0.0] * width, [0] * width
    for index, value in enumerate(probability):
        share = (at[index] - first) / span if span > 0 else index / len(probability)
        place = min(int(share * width), width - 1)
        sums[place] += value
        counts[place] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]
