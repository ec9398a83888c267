"""Which slices contradict each other, as an audit's JSON says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundglass.data.manifest import Manifest
from groundglass.errors import DataError
from groundglass.evaluation.conflicts import conflicting, read_conflicts
from groundglass.evaluation.part import select_part


def pair(first: str, second: str, kind: str = "copy", *, across_labels: bool = True) -> dict[str, Any]:
    return {
        "kind": kind,
        "first": {"file": first},
        "second": {"file": second},
        "across_labels": across_labels,
    }


def write_pairs(path: Path, *pairs: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"format": 1, "pairs": pairs}))
    return path


def test_copies_with_opposite_labels_alone(tmp_path: Path) -> None:
    path = write_pairs(
        tmp_path / "audit.json",
        pair("a.png", "b.png"),
        pair("b.png", "c.png", "file"),
        pair("d.png", "e.png", "lookalike"),
        pair("f.png", "g.png", across_labels=False),
    )
    assert read_conflicts(path) == {"a.png", "b.png", "c.png"}


def test_those_in_the_part(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest()
    part = select_part(manifest, "official", "test", 0)
    files = frozenset({"slice 03.png", "slice 07.png", "slice 20.png"})
    assert conflicting(files, part, manifest) == (3, 7)


def test_an_audit_of_other_data(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest()
    part = select_part(manifest, "official", "test", 0)
    with pytest.raises(DataError, match=r"names 1 slices that .* does not hold \(other\.png\)"):
        conflicting(frozenset({"other.png", "slice 03.png"}), part, manifest)


@pytest.mark.parametrize("text", ["{", '{"pairs": [{}]}', "[]", '{"pairs": 3}', '{"pairs": ["a"]}'])
def test_what_is_no_audit(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(DataError, match=r"audit\.json"):
        read_conflicts(tmp_path / "audit.json")


def test_a_missing_audit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        read_conflicts(tmp_path / "nowhere.json")
