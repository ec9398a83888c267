"""What an epoch holds: cropped slices from a cache, which of them teach and how often, painted ones, each augmented."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.random import default_rng

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Record
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import LungSegmenter, shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.training import samples
from groundglass.training.recipe import AugmentationSection, SamplingSection, SynthesisSection
from groundglass.training.samples import CONTEXT, Augmentation, CroppedSet, SampleKey, TrainingSamples
from groundglass.training.train import _chances, _known, _worth_teaching

PREPROCESSING = Preprocessing(size=64)
OFF = dict.fromkeys(AugmentationSection.model_fields, 0) | {"smallest_crop": 1}
COVID, OTHER = Label.COVID, Label.NON_COVID


def augmentation(**on: float) -> Augmentation:
    return Augmentation(AugmentationSection(**{**OFF, **on}), 64)


def record(label: Label | None = None, source: str = "s", patient: str = "p", **more: Any) -> Record:
    return Record(more.pop("path", Path("a.png")), label, patient, source, None, **more)


def test_slices_are_cropped_once(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phantom, and a bright lesion on black with its mask."""
    lesion = cv2.circle(np.zeros((90, 120), np.uint8), (70, 30), 18, 255, -1)
    slice_file, mask_file, cache = (tmp_path / name for name in ("slice.png", "mask.png", "cache"))
    for path, pixels in ((slice_file, lesion // 2), (mask_file, lesion)):
        cv2.imwrite(str(path), pixels)
    records = [load_dataset(phantoms).records[0], record(path=slice_file, lesion_mask=mask_file)]

    def crop(segmenter: LungSegmenter | None = None, **changes: Any) -> CroppedSet:
        return samples.load_cropped(records, PREPROCESSING.model_copy(update=changes), CONTEXT, cache, segmenter)

    first = crop()
    assert first.lungs[0].mean() > 0.2
    assert first.lesions.sum() > 100
    np.testing.assert_array_equal(first.lesions[1], first.pixels[1] > 63)
    (stored,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.delattr(samples, "read_record")
        again = crop(normalisation="min-max")
        for name in ("pixels", "lungs", "lesions", "sha256"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        with pytest.raises(NameError):
            crop(size=72)
    uncached = samples.load_cropped(records, PREPROCESSING, CONTEXT, slice_file / "no folder")
    np.testing.assert_array_equal(uncached.pixels, first.pixels)
    stored.write_bytes(stored.read_bytes()[:1000])
    np.testing.assert_array_equal(crop().pixels, first.pixels)
    # Other lungs, another truth and other slices.
    (model := onnx.load_from_string(shipped().model)).doc_string = "another"
    crop(LungSegmenter(model.SerializeToString()))
    cv2.imwrite(str(mask_file), np.zeros_like(lesion))
    assert not crop().lesions.any()
    cv2.imwrite(str(slice_file), lesion // 3)
    assert (crop().pixels[1] != first.pixels[1]).any()
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("seed", range(5))
def test_masks_move_with_the_slice(seed: int) -> None:
    mask = cv2.ellipse(np.zeros((80, 80), np.uint8), (46, 34), (21, 9), 30, 0, 360, 1, -1)
    moving = augmentation(translation=0.1, rotation=40, mirror=0.5, smallest_crop=0.6, stretch=0.2)
    pixels, moved = moving(mask * np.uint8(254), default_rng(seed), mask)
    assert set(np.unique(moved)) == {0, 1}
    assert (moved != (pixels > 127)).mean() < 0.002
    assert (moved != augmentation()(mask, default_rng(0))[0]).mean() > 0.02
    (alone,) = moving(mask * np.uint8(254), default_rng(seed))
    np.testing.assert_array_equal(alone, pixels, "a mask draws nothing")


def test_switched_off_it_is_the_slice_that_evaluation_sees() -> None:
    picture = cv2.GaussianBlur(default_rng(0).integers(0, 256, (400, 400), np.uint8), (0, 0), 6)
    context = round(300 * CONTEXT)
    wider = picture[50 - context : 350 + context, 50 - context : 350 + context]
    whole, nothing = Preprocessing(size=64, crop=False), np.zeros((300, 300), np.bool_)
    (training,) = augmentation()(cv2.resize(wider, (80, 80), interpolation=cv2.INTER_AREA), default_rng(0))
    assert np.abs(training.astype(int) - whole.apply(picture[50:350, 50:350], nothing).pixels).mean() < 2


@pytest.mark.parametrize("operation", ["noise", "grey", "blur", "jpeg", "erasing", "mirror"])
def test_each_operation_changes_the_picture_the_same_way_again(operation: str) -> None:
    picture, on = default_rng(1).integers(0, 256, (80, 80), np.uint8), augmentation(**{operation: 1.0})
    plain, changed, again = (each(picture, default_rng(7))[0] for each in (augmentation(), on, on))
    assert (changed.shape, changed.dtype) == ((64, 64), np.uint8)
    assert np.abs(plain.astype(int) - changed).mean() > 1
    np.testing.assert_array_equal(changed, again)


def test_noise_neither_darkens_nor_brightens() -> None:
    flat = np.full((80, 80), 128, np.uint8)
    means = [augmentation(noise=1.0)(flat, default_rng(seed))[0].mean() for seed in range(40)]
    assert np.mean(means) == pytest.approx(128, abs=0.1)


# Of several hospitals; of one a patient with four slices and one with a single one.
POOL = [
    *(record(COVID, "small", patient) for patient in "ppppq"),
    *(record(COVID, "large", str(patient)) for patient in range(45)),
    *(record(OTHER, "small", str(patient)) for patient in range(9)),
    *(record(OTHER, "third", str(patient)) for patient in range(16)),
    # Publications of one collection count as one hospital.
    *(record(COVID, f"paper {number % 2}", str(number), collection="papers") for number in range(20)),
]


@pytest.mark.parametrize("named", [{}, {"papers": 0.3}, {"small": 0.2, "third": 0.2}, {"large": 1.0}])
def test_labels_and_patients_are_drawn_alike_and_hospitals_by_share_or_root(named: dict[str, float]) -> None:
    chances, found = _chances(POOL, SamplingSection(shares=named)), Counter[tuple[object, str]]()
    for each, chance in zip(POOL, chances, strict=True):
        found[each.label, each.hospital] += chance
    assert sum(chance for (label, _), chance in found.items() if label is COVID) == pytest.approx(0.5)
    assert chances[:4] == pytest.approx([chances[4] / 4] * 4)
    if "papers" in named:
        small = 0.35 * 5**0.5 / (5**0.5 + 45**0.5)
        covid = {(COVID, "papers"): 0.15, (COVID, "small"): small, (COVID, "large"): 0.35 - small}
        assert found == pytest.approx(covid | {(OTHER, "small"): 3 / 14, (OTHER, "third"): 4 / 14})


def test_what_masks_teach() -> None:
    """Of 50 places of lung: without mask, no lesion, one place, one outside the lungs, and a healthy slice's none."""
    pixels, lungs, lesions = np.zeros((3, 5, 10, 10), np.uint8)
    lungs[:, :5] = lesions[2, 0, 0] = lesions[3, 9, 9] = 1
    masked, healthy = (record(label, lesion_mask=Path("mask.png")) for label in (COVID, OTHER))
    slices = CroppedSet(pixels, lungs > 0, lesions > 0, tuple("abcde"))
    for least, third in ((0.01, True), (0.03, False)):
        records = [record(COVID), masked, masked, masked, healthy]
        found = _worth_teaching(records, slices, SamplingSection(least_lesion=least))
        assert found.tolist() == [True, False, third, False, True], "COVID that hardly shows is left out"
    # Lesions are known from a mask, or where there are none.
    section = SamplingSection(lesion_free=("clean", "papers"))
    assert all(_known(each, section) for each in (masked, record(OTHER, "clean"), record(OTHER, collection="papers")))
    assert not any(_known(each, section) for each in (record(COVID), record(OTHER), record(COVID, "clean")))


def keys(epoch: int = 0, seed: int = 1, **changes: object) -> list[SampleKey]:
    batches = replace(samples.EpochBatches(32, 8, seed, None, 40, 16, 0.5, epoch=epoch), **changes)
    return [key for batch in batches for key in batch]


def test_an_epoch_holds_every_real_slice_once_or_by_its_chance_and_the_painted_share() -> None:
    drawn = keys()
    assert Counter(key.index for key in drawn if not key.lesion_free) == Counter(range(32))
    assert [sum(key.lesion_free and key.painted is way for key in drawn) for way in (True, False)] == [8, 8]
    assert not any(key.painted for key in drawn if not key.lesion_free)
    assert drawn == keys()
    assert drawn not in (keys(epoch=1), keys(seed=2))
    chances = np.array([0.0, 0.1, 0.6, 0.3])
    first, again, other = (keys(epoch, real=400, synthetic=0, chances=chances) for epoch in (0, 0, 1))
    share = np.bincount([key.index for key in first], minlength=4) / 400
    assert (share[0], share.tolist()) == (0, pytest.approx(chances, abs=0.06))
    assert first == again != other
    assert keys(real=400, synthetic=0, chances=chances, shuffled=False) == sorted(first, key=lambda key: key.seed)


@pytest.fixture(scope="module")
def cropped() -> CroppedSet:
    made = [make_phantom(default_rng(number), level=0.5, size=80) for number in range(4)]
    pixels, lungs = np.stack([each.slice.pixels for each in made]), np.stack([each.lungs for each in made])
    return CroppedSet(pixels, lungs, lungs & (np.arange(80) < 40), ("a", "b", "c", "d"))


def real(cropped: CroppedSet, *indices: int, lungs_only: float = 0.0) -> samples.Batch:
    """Slices of which the second and third are COVID, and the lesions of the last two are known."""
    labels, known = np.array([0, 1, 1, 0], np.float32), np.array([False, False, True, True])
    call: Any = augmentation().__call__  # an augmenter of one's own has nothing else
    own = TrainingSamples(cropped, labels, known, cropped, PREPROCESSING, call, lungs_only, SynthesisSection())
    return own[[SampleKey(index, False, False, (0, 0, 0)) for index in indices]]


def drawn(cropped: CroppedSet, painted: bool, **synthesis: float) -> samples.Batch:
    """Twelve lesion-free slices, painted or not, without augmentation."""
    section, none = SynthesisSection(**{"severity": (0.7, 0.9), **synthesis}), np.zeros(4)
    own = TrainingSamples(cropped, none, none, cropped, PREPROCESSING, augmentation(), 0.0, section)
    return own[[SampleKey(number % 4, True, painted, (0, 0, number)) for number in range(12)]]


def test_real_slices_keep_their_labels_and_lesions(cropped: CroppedSet) -> None:
    images, labels, lesions, known = real(cropped, 1, 0, 3)
    assert (labels.tolist(), known.tolist()) == ([1, 0, 0], [0, 0, 1])
    # The context is an eighth of the side on every side.
    np.testing.assert_array_equal(lesions.numpy(), cropped.lesions[[1, 0, 3], 8:72, 8:72])
    assert (images.shape, images.dtype, lesions.dtype) == ((3, 1, 64, 64), torch.float32, torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    own = PREPROCESSING.normalise(augmentation()(cropped.pixels[1], default_rng(0))[0])
    np.testing.assert_array_equal(images[0, 0].numpy(), own)


@pytest.mark.parametrize("ground_glass", [1.0, 0.0])
def test_painted_slices_are_positive_and_show_it(cropped: CroppedSet, ground_glass: float) -> None:
    images, labels, lesions, known = drawn(cropped, painted=True, ground_glass=ground_glass)
    untouched, negative, none, also_known = drawn(cropped, painted=False)
    assert (labels * known * also_known).all()
    assert not negative.any()
    assert not none.any(), "a lesion-free slice has no lesion, whatever its set says"
    for each, lesion in zip((images - untouched).abs()[:, 0], lesions, strict=True):
        assert each.max() > 0.5
        assert 0 < lesion.sum() < 64 * 64 / 2
        assert each[lesion > 0].mean() > 2 * each[lesion == 0].mean(), "the mask lies where it was painted"


def test_mimics_and_slices_without_lungs_stay_negative_or_are_left_out(cropped: CroppedSet) -> None:
    images, labels, lesions, known = drawn(cropped, painted=False, mimics=1.0)
    blind = drawn(replace(cropped, lungs=np.zeros_like(cropped.lungs)), True, mimics=1.0, ground_glass=0.0)
    assert not torch.cat([labels, lesions.ravel(), blind.labels, blind.lesions.ravel()]).any()
    assert not known.any(), "another disease's shadow is neither a lesion nor healthy"
    assert (images != drawn(cropped, painted=False)[0]).any()
    kept = samples.with_lungs(replace(cropped, lungs=cropped.lungs & (np.arange(4) != 1)[:, None, None]))
    assert (kept.sha256, len(kept)) == (("a", "c", "d"), 3)
    np.testing.assert_array_equal(kept.lesions, cropped.lesions[[0, 2, 3]])


def test_outside_the_lungs_it_is_black_where_asked(cropped: CroppedSet) -> None:
    lungs = cropped.lungs[1, 8:72, 8:72]
    away = cv2.dilate(lungs.view(np.uint8), np.ones((7, 7), np.uint8)) == 0
    only, whole = (real(cropped, 1, lungs_only=share).images[0, 0].numpy() for share in (1.0, 0.0))
    assert len(np.unique(only[away])) == 1
    assert len(np.unique(whole[away])) > 10
    # Normalised by another mean and spread, lung stays what it was.
    assert np.corrcoef(only[lungs], whole[lungs])[0, 1] > 0.999
    assert torch.equal(real(cropped, 2, lungs_only=1.0).lesions, real(cropped, 2).lesions)
    blind = replace(cropped, lungs=np.zeros_like(cropped.lungs))
    assert torch.equal(real(blind, 1, lungs_only=1.0).images, real(blind, 1).images), "a black slice teaches nothing"
