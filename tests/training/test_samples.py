"""What an epoch holds: every real slice once, painted pairs, shared among processes without loss."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lesions import Mimic
from groundglass.imaging.phantom import make_phantom
from groundglass.training.recipe import AugmentationSection, SynthesisSection
from groundglass.training.samples import (
    Augmentation,
    Batch,
    CroppedSet,
    EpochBatches,
    SampleKey,
    TrainingSamples,
    with_lungs,
)

SYNTHESIS = SynthesisSection(slices_per_epoch=16, painted=0.5)


def keys(batches: EpochBatches, epoch: int) -> list[SampleKey]:
    batches.set_epoch(epoch)
    return [key for batch in batches for key in batch]


def test_an_epoch_holds_every_real_slice_once_and_the_painted_share() -> None:
    drawn = keys(EpochBatches(32, 40, SYNTHESIS, 8, seed=1), 0)
    assert Counter(key.index for key in drawn if not key.lesion_free) == Counter(range(32))
    assert sum(key.painted for key in drawn) == 8
    assert sum(key.lesion_free for key in drawn) == 16
    assert not any(key.painted and not key.lesion_free for key in drawn)


def test_epochs_differ_and_repeat_by_seed() -> None:
    batches = EpochBatches(32, 40, SYNTHESIS, 8, seed=1)
    assert keys(batches, 0) == keys(EpochBatches(32, 40, SYNTHESIS, 8, seed=1), 0)
    assert keys(batches, 0) != keys(batches, 1)
    assert keys(batches, 0) != keys(EpochBatches(32, 40, SYNTHESIS, 8, seed=2), 0)


def test_epochs_alone_hold_no_real_slice_and_are_as_long() -> None:
    alone = SynthesisSection(slices_per_epoch=16, epochs_alone=2)
    batches = EpochBatches(32, 40, alone, 8, seed=1)
    assert all(key.lesion_free for key in keys(batches, 1))
    assert len(keys(batches, 1)) == len(keys(batches, 2)) == 48
    assert not all(key.lesion_free for key in keys(batches, 2))


def test_processes_share_each_batch_without_loss() -> None:
    whole = EpochBatches(32, 40, SYNTHESIS, 8, seed=3)
    shares = [EpochBatches(32, 40, SYNTHESIS, 8, 3, rank=rank, world_size=2) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert len(first) == len(second) == 4
        assert set(first) | set(second) == set(batch)
        assert not set(first) & set(second)


@pytest.fixture(scope="module")
def cropped() -> CroppedSet:
    phantoms = [make_phantom(np.random.default_rng(n), level=0.5, size=80) for n in range(4)]
    pixels = np.stack([phantom.slice.pixels for phantom in phantoms])
    return CroppedSet(pixels, np.stack([phantom.lungs for phantom in phantoms]), ("a", "b", "c", "d"))


def test_samples_are_labelled_by_what_was_done_to_them(cropped: CroppedSet) -> None:
    off = AugmentationSection(
        translation=0,
        rotation=0,
        mirror=0,
        noise=0,
        smallest_crop=1,
        stretch=0,
        grey=0,
        blur=0,
        jpeg=0,
        erasing=0,
    )
    samples = TrainingSamples(
        cropped,
        np.array([0, 1, 0, 1], np.float32),
        cropped,
        Preprocessing(size=64),
        Augmentation(off, 64),
        SynthesisSection(severity=(0.7, 0.9)),
    )
    seed = (0, 0, 0)
    images, labels, opacity = samples[
        [
            SampleKey(1, False, False, seed),
            SampleKey(0, False, False, seed),
            SampleKey(2, True, False, seed),
            SampleKey(2, True, True, seed),
        ]
    ]
    assert labels.tolist() == [1, 0, 0, 1]
    assert opacity.isnan().all()
    assert images.shape == (4, 1, 64, 64)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[3].mean() > images[2].mean() + 0.05


def test_a_painted_slice_without_lungs_stays_negative(cropped: CroppedSet) -> None:
    blind = CroppedSet(cropped.pixels, np.zeros_like(cropped.lungs), cropped.sha256)
    augmentation = Augmentation(AugmentationSection(), 64)
    synthesis = SynthesisSection(severity=(0.5, 0.9), mimics=1, ground_glass=0)
    samples = TrainingSamples(
        cropped, np.zeros(4, np.float32), blind, Preprocessing(size=64), augmentation, synthesis
    )
    assert samples[[SampleKey(0, True, True, (0, 0, 0))]][1].tolist() == [0.0]


def test_mimics_are_painted_and_stay_negative(cropped: CroppedSet) -> None:
    def draw(mimics: float) -> Batch:
        samples = TrainingSamples(
            cropped,
            np.zeros(4, np.float32),
            cropped,
            Preprocessing(size=64),
            Augmentation(AugmentationSection(), 64),
            SynthesisSection(mimics=mimics),
        )
        return samples[[SampleKey(number % 4, True, False, (0, 0, number)) for number in range(24)]]

    images, labels, _ = draw(1.0)
    assert not labels.any()
    # What is drawn for augmentation follows what was drawn for paint: without mimics it is another stream.
    assert (images != draw(0.0)[0]).any()


def test_other_kinds_than_ground_glass_are_painted_and_positive(cropped: CroppedSet) -> None:
    synthesis = SynthesisSection(severity=(0.7, 0.9), ground_glass=0)
    plain = AugmentationSection(
        translation=0, rotation=0, mirror=0, noise=0, smallest_crop=1, stretch=0, grey=0, blur=0, jpeg=0
    )
    augmentation = Augmentation(plain.model_copy(update={"erasing": 0}), 64)
    samples = TrainingSamples(
        cropped, np.zeros(4, np.float32), cropped, Preprocessing(size=64), augmentation, synthesis
    )
    images, labels, _ = samples[[SampleKey(number % 4, True, True, (0, 0, number)) for number in range(24)]]
    assert labels.all()
    untouched = samples[[SampleKey(number % 4, True, False, (0, 0, number)) for number in range(24)]][0]
    assert ((images - untouched).mean(dim=(1, 2, 3)) > 0.05).all()


def taught(cropped: CroppedSet, keys: list[SampleKey], **synthesis: object) -> Batch:
    """The batch of these keys; the real slices are all COVID."""
    samples = TrainingSamples(
        cropped,
        np.ones(4, np.float32),
        cropped,
        Preprocessing(size=64),
        Augmentation(AugmentationSection(), 64),
        SynthesisSection(severity=(0.5, 0.9), **synthesis),
    )
    return samples[keys]


REAL = SampleKey(0, lesion_free=False, painted=False, seed=(0, 0, 0))
UNTOUCHED, PAINTED = (SampleKey(0, lesion_free=True, painted=on, seed=(0, 0, 0)) for on in (False, True))
NAN = float("nan")


@pytest.mark.parametrize(
    ("teaches", "covid", "opacity"),
    [
        ("covid", [1, 0, 1], [NAN, NAN, NAN]),
        ("opacity", [1, NAN, NAN], [NAN, 0, 1]),
        ("both", [1, 0, 1], [NAN, 0, 1]),
    ],
)
def test_a_recipe_says_which_output_painted_pairs_teach(
    cropped: CroppedSet, teaches: str, covid: list[float], opacity: list[float]
) -> None:
    batch = taught(cropped, [REAL, UNTOUCHED, PAINTED], teaches=teaches)
    np.testing.assert_array_equal(batch.covid, covid)
    np.testing.assert_array_equal(batch.opacity, opacity)
    plain = taught(cropped, [REAL, UNTOUCHED, PAINTED])
    assert torch.equal(batch.images, plain.images), "what is taught changes nothing of what is drawn"


@pytest.mark.parametrize("mimic", Mimic)
def test_of_mimics_only_a_filled_lobe_is_opacity(
    cropped: CroppedSet, mimic: Mimic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.training.samples._MIMICS", (mimic,))
    keys = [SampleKey(number % 4, True, False, (0, 0, number)) for number in range(8)]
    batch = taught(cropped, keys, teaches="both", mimics=1)
    expected = {Mimic.LOBAR_CONSOLIDATION: 1.0, Mimic.MASS: NAN}.get(mimic, 0.0)
    np.testing.assert_array_equal(batch.opacity, [expected] * 8)
    assert not batch.covid.any()


def test_a_mimic_that_cannot_be_seen_is_no_opacity(
    cropped: CroppedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.training.samples._MIMICS", (Mimic.LOBAR_CONSOLIDATION,))
    blind = CroppedSet(cropped.pixels, np.zeros_like(cropped.lungs), cropped.sha256)
    assert taught(blind, [UNTOUCHED], teaches="both", mimics=1).opacity.tolist() == [0]


def test_slices_without_lungs_are_left_out(cropped: CroppedSet) -> None:
    lungs = cropped.lungs.copy()
    lungs[1] = False
    kept = with_lungs(CroppedSet(cropped.pixels, lungs, cropped.sha256))
    assert kept.sha256 == ("a", "c", "d")
    assert len(kept) == 3
