"""Candidates: copies are among the few that are proposed, and many slices propose few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from groundglass.audit.duplicates import (
    Fingerprint,
    fingerprint,
    hash_candidates,
    mirrored_codes,
    mirrored_hash,
    patch_candidates,
)
from groundglass.imaging.phantom import make_phantom


def random_print(rng: np.random.Generator) -> Fingerprint:
    return Fingerprint(
        shape=(256, 256),
        box=(0, 0, 256, 256),
        hash=rng.random(255) < 0.5,
        lungs=(10, 10, 200, 200),
        lungs_hash=rng.random(255) < 0.5,
        codes=rng.integers(0, 1 << 16, (100, 6)).astype(np.uint16),
        points=rng.uniform(0, 255, (100, 2)).astype(np.float32),
    )


@pytest.fixture
def prints() -> list[Fingerprint]:
    rng = np.random.default_rng(0)
    return [random_print(rng) for _ in range(200)]


def test_slices_that_share_patches_are_proposed_once(prints: list[Fingerprint]) -> None:
    rng = np.random.default_rng(1)
    shared = random_print(rng)
    codes = np.concatenate([prints[3].codes[:15], shared.codes[:85]])
    prints[90] = replace(shared, codes=codes)
    found = list(patch_candidates(prints, None))
    pairs = {(one.first, one.second, one.mirrored) for one in found}
    assert (3, 90, False) in pairs
    assert all(one.first < one.second for one in found)
    assert (3, 90, True) not in pairs


def test_the_mirror_image_is_proposed_as_such(prints: list[Fingerprint]) -> None:
    assert prints[5].hash is not None
    prints[6] = replace(
        prints[5],
        codes=mirrored_codes(prints[5].codes),
        hash=mirrored_hash(prints[5].hash),
        lungs_hash=None,
    )
    assert (5, 6, True) in {(one.first, one.second, one.mirrored) for one in patch_candidates(prints, None)}
    alike = [(one.first, one.second, one.mirrored, one.window) for one in hash_candidates(prints, None)]
    assert alike == [(5, 6, True, "whole")]


def test_between_two_sets_only_pairs_across_are_proposed(prints: list[Fingerprint]) -> None:
    first, second = prints[:50], [*prints[50:], prints[7]]
    pairs = {(one.first, one.second) for one in patch_candidates(first, second)}
    assert (7, 150) in pairs
    assert {(one.first, one.second, one.window) for one in hash_candidates(first, second)} == {
        (7, 150, "whole"),
        (7, 150, "lungs"),
    }


def test_neighbours_of_a_patient_do_not_displace_a_copy_elsewhere(prints: list[Fingerprint]) -> None:
    # Ten slices of a patient share 40 patches; one of somebody else shares 20 with the first of them.
    rng = np.random.default_rng(2)
    for number in range(10):
        own = random_print(rng).codes
        prints[number] = replace(prints[number], codes=np.concatenate([prints[0].codes[:40], own[:60]]))
    prints[100] = replace(prints[100], codes=np.concatenate([prints[0].codes[:20], prints[100].codes[:80]]))
    patients = ["one"] * 10 + [str(number) for number in range(190)]
    pairs = {(one.first, one.second) for one in patch_candidates(prints, None, patients)}
    assert (0, 100) in pairs


def test_a_thousand_alike_propose_few_pairs() -> None:
    rng = np.random.default_rng(3)
    like = random_print(rng)
    alike = [replace(like, hash=like.hash ^ (rng.random(255) < 0.03)) for _ in range(1000)]
    assert len(list(hash_candidates(alike, None))) <= 2 * 16 * len(alike)
    assert len(list(patch_candidates(alike, None))) <= 2 * 4 * len(alike)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_pair(prints: list[Fingerprint], count: int) -> None:
    few = prints[:count]
    assert list(patch_candidates(few, None)) == []
    assert list(hash_candidates(few, None)) == []
    assert list(patch_candidates(few, [])) == []
    assert list(hash_candidates([], few)) == []


def test_slices_without_patches_or_hash_propose_nothing() -> None:
    blank = fingerprint(np.zeros((100, 100), np.uint8))
    seen = fingerprint(make_phantom(np.random.default_rng(0), size=128).slice.pixels)
    assert list(patch_candidates([blank, blank, seen], None)) == []
    assert list(hash_candidates([blank, blank, seen], None)) == []
