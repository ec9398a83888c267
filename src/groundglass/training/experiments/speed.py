"""How fast a trained network judges framed slices."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch
from torch import nn

from groundglass.models.mirrored import Mirrored
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
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    network = run.network
    # The recipe's mirror image doubles the cost of every network alike; operations are of one pass, too.
    plain = (network.network if isinstance(network, Mirrored) else network).to(device)
    size = run.recipe.framing.size
    images = torch.randn(BATCH_SIZE, 1, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with torch.inference_mode():
        first = max(_seconds(plain, images, 1) for _ in range(2))
        batches = max(1, round(_SHORTEST_ROUND / first))
        rounds = [BATCH_SIZE * batches / _seconds(plain, images, batches) for _ in range(ROUNDS)]
    plain.to("cpu")
    return {
        "images_per_second": round(statistics.median(rounds), 2),
        "rounds_images_per_second": [round(each, 2) for each in rounds],
        "rounds": ROUNDS,
        "batch_size": BATCH_SIZE,
        "input_size": size,
        "passes_per_image": 1,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "load_average_before": load,
    }


def _seconds(network: nn.Module, images: torch.Tensor, batches: int) -> float:
    begin = time.perf_counter()
    for _ in range(batches):
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
