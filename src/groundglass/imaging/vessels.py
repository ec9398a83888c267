"""Vessel and airway trees that fill the lungs in three dimensions, and their cut by an axial slice."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.canvas import Canvas

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class VesselTree:
    """Tapering straight segments, all arrays along the first axis.

    Attributes:
        start: float64 (N, 3), mm, (x, y, z) with z growing from apex to base.
        end: float64 (N, 3).
        start_radius: float64 (N,), mm.
        end_radius: float64 (N,), mm.
        generation: int (N,), 0 for the branches that leave the root.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_radius: NDArray[np.float64]
    end_radius: NDArray[np.float64]
    generation: NDArray[np.int64]


def grow_tree(
    root: NDArray[np.float64], targets: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> VesselTree:
    """Grow a binary tree from ``root`` until a branch points at each target.

    Every generation halves each group of targets along the axis of its greatest spread and sends a branch
    part of the way to each half's centre of mass: the volume-filling scheme of Tawhai et al. (Annals of
    Biomedical Engineering, 2000), one generation at a time. Radii shrink nearly by Murray's law.

    Args:
        root: float64 (3,), mm.
        targets: float64 (2**generations, 3), mm, spread over the volume to fill.
        radius: radius at the root in mm.
        rng: source of the branches' irregularity.
    """
    generations = int(np.log2(len(targets)))
    tips = root[None]
    groups = np.ascontiguousarray(targets.T)[:, None]
    starts, ends, radii = [], [], []
    for generation in range(generations):
        spread = groups.max(axis=2) - groups.min(axis=2)
        # Not always the widest axis, or all branches of a generation would lie at one level.
        widest = (spread * rng.uniform(0.45, 1.0, spread.shape)).argmax(axis=0)
        order = groups[widest, np.arange(len(widest))]
        order = order.argpartition(order.shape[1] // 2 - 1, axis=1)
        groups = np.take_along_axis(groups, order[None], axis=2).reshape(3, 2 * len(widest), -1)
        origin = np.repeat(tips, 2, axis=0)
        reach = rng.uniform(0.18, 0.62, (len(origin), 1)) if generation + 1 < generations else 0.9
        tips = origin + (groups.mean(axis=2).T - origin) * reach
        tips = tips + rng.normal(0, 0.12, tips.shape) * np.linalg.norm(tips - origin, axis=1, keepdims=True)
        starts.append(origin)
        ends.append(tips)
        radii.append(radius * 2 ** (-0.40 * (generation + rng.uniform(-0.5, 0.5, len(tips)))))
    counts = [len(r) for r in radii]
    thickness = np.concatenate(radii)
    return VesselTree(
        np.concatenate(starts),
        np.concatenate(ends),
        thickness,
        thickness * 0.8,
        np.repeat(range(generations), counts),
    )


@dataclass(frozen=True)
class Cut:
    """The part of a tree inside a slice: capsules in the plane.

    Attributes:
        start, end: float64 (N, 2), mm.
        radius: float64 (N,), mm.
        share: float64 (N,), 0..1, the part of the slice's thickness that the vessel fills.
        generation: int (N,).
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius: NDArray[np.float64]
    share: NDArray[np.float64]
    generation: NDArray[np.int64]


def cut_tree(tree: VesselTree, z: float, thickness: float) -> Cut:
    """Cut a tree by the axial slice of the given thickness around ``z``, all in mm."""
    rise = tree.end[:, 2] - tree.start[:, 2]
    rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
    half = thickness / 2 + 0.5 * tree.start_radius
    bounds = np.stack([(z - half - tree.start[:, 2]) / rise, (z + half - tree.start[:, 2]) / rise])
    first = np.clip(bounds.min(axis=0), 0, 1)
    last = np.clip(bounds.max(axis=0), 0, 1)
    kept = last > first
    first, last = first[kept], last[kept]
    start, run = tree.start[kept], (tree.end - tree.start)[kept]
    middle = (first + last) / 2
    radius = tree.start_radius[kept] + (tree.end_radius - tree.start_radius)[kept] * middle
    filled = np.abs(rise[kept]) * (last - first) + 1.6 * radius
    return Cut(
        start=(start + run * first[:, None])[:, :2],
        end=(start + run * last[:, None])[:, :2],
        radius=radius,
        share=np.clip(filled / (thickness + 1.2 * radius), 0.05, 1),
        generation=tree.generation[kept],
    )


def draw_cut(canvas: Canvas, cut: Cut, widen: float = 0.0) -> NDArray[np.float32]:
    """Coverage 0..1 of the canvas by a cut tree, vessels thinner than a pixel dimmed accordingly.

    Args:
        canvas: gives size and spacing; it is not drawn on.
        cut: what to draw.
        widen: mm added to every radius.
    """
    plane = np.zeros((canvas.size, canvas.size), np.uint8)
    radius = np.maximum(cut.radius + widen, 0.05) / canvas.spacing
    shown = np.maximum(radius, 0.55)
    level = np.rint(255 * cut.share * np.minimum(1, radius / 0.55)).astype(int)
    start, end = canvas.to_pixels(cut.start), canvas.to_pixels(cut.end)
    run = end - start
    heading = np.arctan2(run[:, 1], run[:, 0])
    cap = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)
    turn = heading[:, None] + np.concatenate([cap, cap + np.pi])
    centre = np.concatenate([np.repeat(start[:, None], 7, 1), np.repeat(end[:, None], 7, 1)], axis=1)
    capsule = centre + shown[:, None, None] * np.stack([np.cos(turn), np.sin(turn)], axis=2)
    fixed = np.rint(capsule * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    # Dim ones first: where vessels cross, the brighter one shows, as in a thin slice.
    for index in np.argsort(level, kind="stable"):
        cv2.fillConvexPoly(plane, fixed[index], int(level[index]), cv2.LINE_AA, _SUBPIXEL_BITS)
    return plane.astype(np.float32) * np.float32(1 / 255)
