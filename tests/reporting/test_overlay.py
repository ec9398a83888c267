"""Overlays: where colour falls, and what outlines and layers hold."""

from __future__ import annotations

import base64
from dataclasses import replace

import cv2
import numpy as np
import pytest

from groundglass.reporting import overlay


def test_a_layer_is_the_more_opaque_the_surer_and_nothing_where_the_map_is_no_number() -> None:
    layer = overlay.map_layer(np.float32([[9, 0, -9], [np.nan, -np.inf, 9]]))
    assert layer[0, 0].tolist() == pytest.approx([*overlay.LESION[::-1], 158], abs=1)
    assert layer[..., 3].tolist() == [[158, 79, 0], [0, 0, 158]]


def test_layers_hold_slice_and_outlines_to_scale_and_are_read_again() -> None:
    lungs = np.zeros((600, 1200), bool)
    lungs[80:120, 40:60] = True
    lungs[90:100, 45:50] = False
    slice_of = np.full((600, 1200), 100, np.uint8), lungs, np.zeros_like(lungs)
    layers = overlay.Layers.of(*slice_of, (0.8, 0.8))
    tall = overlay.Layers.of(*slice_of, (1.6, 0.8))
    assert (tall.width, tall.height) == (1200, 1200), "rows lie twice as far apart as columns"
    assert tall.lungs.startswith("M40.5,161 ")
    assert layers.lungs.count("M") == 2, "the hole too"
    assert {"40.5,80.5", "59.5,119.5"} <= set(layers.lungs[1:].split(" Z")[0].split(" L"))
    assert layers.lesions == ""
    assert overlay.Layers.read(layers.svg()) == layers
    assert overlay.Layers.read(layers.svg().replace("<image", '<image onload="x()"><image')) is None
    for shown, side in ((layers, 512), (layers.small(100), 100)):
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(shown.picture), np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        assert pixels.shape == (side // 2, side)
        assert (shown.width, shown.height) == (1200, 600)
    with pytest.raises(ValueError, match="damaged"):
        replace(layers, picture="AAAA").small(9)
