"""Slices that a data set holds twice with opposite labels, as an audit found them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from groundglass.data.manifest import Manifest, name_some
from groundglass.errors import DataError
from groundglass.evaluation.part import Part


def read_conflicts(path: Path) -> frozenset[str]:
    """Files of all slices of which a copy has the opposite label, as paths below the audited folder.

    Slices that merely look alike are not among them.

    Args:
        path: ``audit.json`` of ``groundglass data audit``.

    Raises:
        DataError: it cannot be read, or is no audit.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return frozenset(_files(document))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no audit.json of `groundglass data audit` ({error!r})") from error


def conflicting(files: frozenset[str], part: Part, manifest: Manifest) -> tuple[int, ...]:
    """Indices of a part's slices that are among the conflicting ones.

    Args:
        files: as `read_conflicts` gives them.
        part: of the data set.
        manifest: the whole data set, which must hold every one of them.

    Raises:
        DataError: it does not, so that the audit is of other data.
    """
    strangers = sorted(files.difference(part.file(record) for record in manifest))
    if strangers:
        raise DataError(
            f"the audit names {len(strangers)} slices that {manifest.root} does not hold "
            f"({name_some(strangers)}); audit the data set by the same path"
        )
    return tuple(index for index, record in enumerate(part.records) if part.file(record) in files)


def _files(document: Mapping[str, Any]) -> Iterator[str]:
    for pair in document["pairs"]:
        if pair["across_labels"] and pair["kind"] != "lookalike":
            yield from (str(pair[side]["file"]) for side in ("first", "second"))
