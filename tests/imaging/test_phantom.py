from __future__ import annotations

import numpy as np
import pytest

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import Phantom, make_phantom, make_series
from groundglass.imaging.window import LUNG


def phantom(seed: int = 0, severity: float = 0.0, level: float | None = 0.6, size: int = 256) -> Phantom:
    return make_phantom(np.random.default_rng(seed), severity=severity, level=level, size=size)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_tissues_have_their_hounsfield_units(seed: int, level: float) -> None:
    made = phantom(seed, level=level)
    values = made.hounsfield
    assert values.dtype == np.float32
    assert values.shape == made.lungs.shape == made.slice.pixels.shape == (256, 256)
    assert -1024 <= values.min() < -900, "air around the body"
    assert values.max() > 300, "bone"
    assert made.lungs.any()
    assert -930 < np.median(values[made.lungs]) < -740, "aerated lung"
    soft = (values > 0) & (values < 100)
    assert soft.mean() > 0.05, "muscle and organs"


@pytest.mark.parametrize("seed", range(6))
def test_two_lungs_lie_left_and_right_of_the_middle(seed: int) -> None:
    lungs = phantom(seed, level=0.5).lungs
    left, right = lungs[:, :128].sum(), lungs[:, 128:].sum()
    assert 0.5 < left / right < 2
    assert lungs.mean() > 0.06


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another() -> None:
    first, again, other = phantom(3, 0.5), phantom(3, 0.5), phantom(4, 0.5)
    assert np.array_equal(first.hounsfield, again.hounsfield)
    assert np.array_equal(first.lesions, again.lesions)
    assert first.slice.origin == again.slice.origin
    assert first.patient_id != other.patient_id
    assert not np.array_equal(first.hounsfield, other.hounsfield)


def test_healthy_and_diseased_differ_in_the_lesions_alone() -> None:
    healthy, diseased = phantom(5), phantom(5, severity=0.6)
    assert not healthy.lesions.any()
    assert diseased.lesions.any()
    assert not (diseased.lesions & ~diseased.lungs).any(), "lesions only inside the lungs"
    change = diseased.hounsfield - healthy.hounsfield
    assert np.abs(change[~diseased.lungs & (healthy.hounsfield > -400)]).mean() < 2
    assert change[diseased.lesions].mean() > 100, "ground glass is denser than lung"


def test_lesions_grow_with_severity() -> None:
    shares = [
        np.mean([phantom(seed, severity).lesions.sum() / phantom(seed).lungs.sum() for seed in range(5)])
        for severity in (0.1, 0.4, 0.9)
    ]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.3


def test_lungs_shrink_towards_the_apex_and_under_the_diaphragm() -> None:
    areas = [phantom(7, level=level).lungs.sum() for level in (0.0, 0.5, 1.0)]
    assert areas[0] < 0.6 * areas[1]
    assert areas[2] < 0.8 * areas[1]


@pytest.mark.parametrize("seed", range(8))
def test_preprocessing_finds_the_lungs_of_phantoms(seed: int) -> None:
    made = phantom(seed, level=0.5, size=512)
    cropped = Preprocessing(size=160).apply(LUNG.apply(made.hounsfield))
    assert cropped.found
    left, top, right, bottom = cropped.box
    rows, columns = np.nonzero(made.lungs)
    inside = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
    assert inside.mean() > 0.98


def test_a_series_is_one_patient_from_apex_to_base() -> None:
    series = list(make_series(np.random.default_rng(1), count=5, severity=0.4, size=128))
    assert [made.instance for made in series] == [1, 2, 3, 4, 5]
    assert {made.patient_id for made in series} == {series[0].patient_id}
    assert len({made.slice.origin.series for made in series}) == 1
    heights = [made.slice.origin.position[2] for made in series if made.slice.origin.position]
    assert len(heights) == 5
    assert np.all(np.diff(heights) < 0), "towards the feet"
    assert np.allclose(np.diff(heights), np.diff(heights)[0])


def test_a_slice_takes_the_same_room_whatever_its_size() -> None:
    small, large = phantom(2, size=128), phantom(2, size=512)
    assert small.lungs.mean() == pytest.approx(large.lungs.mean(), rel=0.05)


@pytest.mark.parametrize(
    ("severity", "level", "size"), [(-0.1, 0.5, 128), (1.1, 0.5, 128), (0, 1.5, 128), (0, 0.5, 8)]
)
def test_values_out_of_range_are_refused(severity: float, level: float, size: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        phantom(severity=severity, level=level, size=size)
