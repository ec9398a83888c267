"""Other views of an invented chest show what a real one would, where it would."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.data.out_of_distribution import Volume, develop, scan_volume


@pytest.fixture(scope="module")
def volume() -> Volume:
    return scan_volume(np.random.default_rng(5), planes=24, size=128)


def test_lungs_lie_above_the_abdomen_on_both_sides(volume: Volume) -> None:
    coronal = volume.coronal(0.5)
    rows, columns = coronal.shape
    air = (coronal > -960) & (coronal < -600)
    upper, lower = air[: rows // 2], air[-rows // 5 :]
    assert upper[:, : columns // 2].mean() > 0.1 < upper[:, columns // 2 :].mean()
    assert lower.mean() < 0.02


def test_views_are_isotropic(volume: Volume) -> None:
    height = len(volume.hounsfield) * volume.between
    for view in (volume.coronal(0.5), volume.sagittal(0.4), volume.radiograph()):
        assert view.shape[1] == 128
        assert view.shape[0] * volume.spacing == pytest.approx(height, abs=volume.spacing)


def test_a_share_beyond_the_volume_is_its_edge(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.coronal(-1), volume.coronal(0))
    np.testing.assert_array_equal(volume.sagittal(7), volume.sagittal(1))


@pytest.mark.parametrize("lateral", [False, True])
def test_rays_through_air_lose_nothing_and_through_bone_most(volume: Volume, lateral: bool) -> None:
    attenuation = volume.radiograph(lateral)
    assert attenuation.min() >= 0
    assert np.median(attenuation[:, :2]) < 0.05 * attenuation.max()
    film = develop(attenuation)
    assert film.dtype == np.uint8
    assert film[attenuation == attenuation.max()].min() == 255
    assert film[attenuation == 0].max(initial=0) == 0


def test_a_radiograph_of_nothing_is_black() -> None:
    assert not develop(np.zeros((8, 8), np.float32)).any()


def test_the_same_state_scans_the_same_volume() -> None:
    first, again = (scan_volume(np.random.default_rng(1), planes=3, size=64) for _ in range(2))
    np.testing.assert_array_equal(first.hounsfield, again.hounsfield)


def test_disease_shows_in_every_view() -> None:
    healthy, ill = (
        scan_volume(np.random.default_rng(2), planes=8, size=96, severity=severity, below=0.0)
        for severity in (0.0, 0.9)
    )
    assert (ill.coronal(0.6) - healthy.coronal(0.6)).mean() > 5
    assert (ill.radiograph() - healthy.radiograph()).mean() > 0
