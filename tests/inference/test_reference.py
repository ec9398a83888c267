"""Where training slices lie: fitted, carried in a bundle, and asked about others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference import reference as exposure
from groundglass.inference.engine import Engine
from groundglass.inference.reference import FEWEST, Embedded, Reference, describe_slices, embed

from .conftest import SIZE, tiny_model


def draw(count: int, seed: int, names: str = "patient") -> Embedded:
    rng = np.random.default_rng(seed)
    group = np.array([f"{names} {seed} {index // 2}" for index in range(count)])
    grey = np.exp(rng.normal(3, 0.2, (count, len(exposure.STATISTICS))))
    return Embedded(rng.normal(0, 1, (count, 32)).astype(np.float32), grey.astype(np.float32), group)


@pytest.fixture(scope="module")
def reference() -> Reference:
    found = Reference.fit(draw(120, 0), draw(100, 1))
    assert found is not None
    return found


def place(reference: Reference, embedded: Embedded) -> tuple[float, float, float]:
    """Shares beyond 95 % by embedding, grey, and either."""
    places = reference.place(embedded.embedding, embedded.grey)
    return tuple(float(np.mean(each >= 95)) for each in (places.embedding, places.grey, places.either))  # type: ignore[return-value]


def test_data_alike_are_called_alike(reference: Reference) -> None:
    assert max(place(reference, draw(1000, 2))) < 0.15


def test_each_distance_notices_its_own(reference: Reference) -> None:
    like = draw(100, 3)
    far, grey, either = place(reference, replace(like, embedding=like.embedding + 3))
    assert (far > 0.9, grey < 0.2, either > 0.8) == (True, True, True)
    far, grey, either = place(reference, replace(like, grey=like.grey * 2.5))
    assert (far < 0.2, grey > 0.9, either > 0.8) == (True, True, True)


def test_patients_of_the_training_part_do_not_calibrate() -> None:
    training, held_out = draw(60, 0), draw(60, 1)
    mixed = Embedded(
        np.concatenate([held_out.embedding, training.embedding]),
        np.concatenate([held_out.grey, training.grey]),
        np.concatenate([held_out.group, training.group]),
    )
    found = Reference.fit(training, mixed)
    assert found is not None
    assert len(found.held_out) == 60
    assert Reference.fit(training, training) is None


def test_too_few_slices_make_no_reference() -> None:
    assert Reference.fit(draw(60, 0), draw(FEWEST - 1, 1)) is None
    assert Reference.fit(draw(FEWEST - 1, 0), draw(60, 1)) is None
    assert Reference.fit(draw(FEWEST, 0), draw(FEWEST, 1)) is not None


def test_it_survives_its_arrays_and_they_are_small(reference: Reference) -> None:
    arrays = reference.as_arrays()
    again = Reference.from_arrays(arrays)
    assert again is not None
    new = draw(30, 5)
    np.testing.assert_array_equal(
        again.place(new.embedding, new.grey).either, reference.place(new.embedding, new.grey).either
    )
    assert not any(array.dtype == object for array in arrays.values())
    wide = Embedded(np.random.default_rng(0).normal(0, 1, (400, 1280)), draw(400, 0).grey, draw(400, 0).group)
    other = replace(wide, group=draw(400, 1).group)
    found = Reference.fit(wide, other.take(np.arange(400) < 118))
    assert found is not None
    assert sum(array.nbytes for array in found.as_arrays().values()) < 100_000


def test_none_damaged_and_of_another_version(reference: Reference) -> None:
    arrays = reference.as_arrays()
    assert Reference.from_arrays({}) is None
    assert Reference.from_arrays({**arrays, "exposure_version": np.asarray(exposure.VERSION + 1)}) is None
    for missing in ("quantiles", "embedding_centre", "grey_held_out"):
        with pytest.raises(BundleError, match="reference statistics are damaged"):
            Reference.from_arrays({name: array for name, array in arrays.items() if name != missing})


def test_slices_are_described_and_embedded_as_inference_does() -> None:
    preprocessing, engine = Preprocessing(size=SIZE), Engine(tiny_model(), threads=1)
    slices: list[NDArray[np.uint8]] = [
        make_phantom(np.random.default_rng(seed), level=0.5, size=96).slice.pixels for seed in range(35)
    ]
    embedded = embed(
        engine, preprocessing, describe_slices(preprocessing, iter(slices), [str(seed) for seed in range(35)])
    )
    assert embedded.embedding.shape == (35, 64)
    for index in (0, 34):
        frame = preprocessing.apply(slices[index])
        alone = engine.run(preprocessing.normalise(frame.pixels[None])).embedding[0]
        np.testing.assert_allclose(embedded.embedding[index], alone, atol=1e-5)
        np.testing.assert_array_equal(embedded.grey[index], exposure.exposure(frame))
