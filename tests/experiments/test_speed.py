"""Speed of networks: measured together, and told apart."""

from __future__ import annotations

import pytest
import torch

from groundglass.experiments.runner import ROUNDS, speed_side_by_side


@pytest.mark.slow
def test_networks_side_by_side() -> None:
    threads = torch.get_num_threads()
    try:
        measured = speed_side_by_side(["efficientnet-lite0", "resnet-50"], 96, "cpu", threads=1)
    finally:
        torch.set_num_threads(threads)
    light, heavy = measured["efficientnet-lite0"], measured["resnet-50"]
    # Thirteen times the operations: whatever else runs, the order is the same.
    assert light["images_per_second"] > 1.5 * heavy["images_per_second"]
    for each in (light, heavy):
        assert len(each["rounds_images_per_second"]) == ROUNDS
        assert (each["input_size"], each["threads"], each["batch_size"]) == (96, 1, 16)
        assert each["device"] == "CPU"
