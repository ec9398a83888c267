"""How fast networks judge framed slices."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from groundglass.models.mirrored import Mirrored
from groundglass.models.registry import build
from groundglass.training.run import Run

BATCH_SIZE = 16
ROUNDS = 9

_SHORTEST_ROUND = 0.25
"""Seconds: shorter rounds would measure the clock and the machine's whims."""


def inference_speed(run: Run, accelerator: str) -> dict[str, Any]:
    """Framed slices per second through a run's network, one pass each, without reading and framing.

    Args:
        run: a finished run.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as for training.

    Returns:
        Images per second (median over rounds, and every round), batch size, device, threads, and the
        machine's load when it began, for what else ran slows this down.
    """
    network = run.network
    # The recipe's mirror image doubles the cost of every network alike; operations are of one pass, too.
    plain = network.network if isinstance(network, Mirrored) else network
    (measured,) = _measured([plain], run.recipe.framing.size, accelerator)
    return measured


def speed_side_by_side(
    networks: Sequence[str], size: int, accelerator: str, threads: int
) -> dict[str, dict[str, Any]]:
    """The same for several networks in alternating rounds, so that what else runs slows all of them alike.

    Args:
        networks: names of registry entries; what their weights are does not matter.
        size: of framed slices.
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        threads: CPU threads; 0 for one per core.

    Returns:
        By network, as :func:`inference_speed`.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    built = [build(name).eval().to(memory_format=torch.channels_last) for name in networks]
    return dict(zip(networks, _measured(built, size, accelerator), strict=True))


def _measured(networks: Sequence[nn.Module], size: int, accelerator: str) -> list[dict[str, Any]]:
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    images = torch.randn(BATCH_SIZE, 1, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rounds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for network in networks:
            network.to(device)
        warm = [min(_seconds(network, images, 1) for _ in range(3)) for network in networks]
        batches = [max(1, round(_SHORTEST_ROUND / seconds)) for seconds in warm]
        for _ in range(ROUNDS):
            for network, count, speeds in zip(networks, batches, rounds, strict=True):
                speeds.append(BATCH_SIZE * count / _seconds(network, images, count))
        for network in networks:
            network.to("cpu")
    return [
        {
            "images_per_second": round(statistics.median(speeds), 2),
            "rounds_images_per_second": [round(each, 2) for each in speeds],
            "rounds": ROUNDS,
            "batch_size": BATCH_SIZE,
            "input_size": size,
            "passes_per_image": 1,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "load_average_before": load,
        }
        for speeds in rounds
    ]


def _seconds(network: nn.Module, images: torch.Tensor, batches: int) -> float:
    begin = time.perf_counter()
    for _ in range(batches):
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
