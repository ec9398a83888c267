"""The whole audit: what it finds, in what order, what it warns of, and how it is written."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console
from tests.conftest import Patch

from groundglass.audit.audit import Audit, audit, found
from groundglass.audit.report import audit_tables, document, write_audit
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.phantoms import write_phantoms
from groundglass.data.splits import Split
from groundglass.errors import DataError

RECORD = Path(__file__).parents[2] / "results" / "audit" / "audit.json"
CONDITIONS = ["leakage", "duplicates", "conflicts", "unreadable"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_phantoms(tmp_path_factory.mktemp("audit") / "phantoms", 20, (0.3, 0.6), seed=2, size=256)


@pytest.fixture(scope="module")
def spoilt(clean: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """With a crop in another part under the other label, a recoded copy in the same part, a patient in two parts,
    a publication in two parts, and a broken file; in a folder whose name is no text."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("spoilt")) + b"/\xff\xfe|`x`"))
    folder.mkdir()
    records, parts = list(clean.records), [record.split for record in clean]
    train, val, test = (records[parts.index(part)] for part in ("train", "val", "test"))

    def added(original: Record, name: str, pixels: Any, **changes: Any) -> None:
        (folder / name).write_bytes(cv2.imencode(name[-4:], pixels)[1].tobytes())
        records.append(replace(original, path=folder / name, source="paper", **changes))

    first, second = (cv2.imread(str(each.path), cv2.IMREAD_GRAYSCALE) for each in (train, val))
    another = {"label": Label.NON_COVID, "split": "test", "patient_id": folder.name}
    added(train, "twin <b>.png", np.asarray(first)[20:230, 15:245], **another)
    added(val, "again.jpg", cv2.resize(np.asarray(second), (200, 200)))
    records[records.index(test)] = replace(test, patient_id=train.patient_id)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return replace(clean, records=(*records, replace(records[3], path=folder / "broken.png")))


@pytest.fixture(scope="module")
def audited(spoilt: Manifest) -> Audit:
    return audit(spoilt)


def test_everything_that_was_hidden_is_found(audited: Audit) -> None:
    twins, again = audited.kinds["copies"]
    assert twins.second.path.name == "twin <b>.png"
    assert (again.second.path.name, again.across_parts, again.across_labels) == ("again.jpg", False, False)
    for kind in ("copies_across_parts", "label_conflicts", "copies_of_different_patients"):
        assert audited.kinds[kind] == [twins]
    assert [sum(parts.values()) for parts in audited.crossings["patients_in_several_parts"].values()] == [2]
    assert list(audited.crossings["sources_in_several_parts"]) == ["paper"]
    assert [line.partition(":")[0].rpartition("/")[2] for line in audited.unreadable] == ["broken.png"]
    assert len(audited.warnings()) >= 5
    assert found(audited, CONDITIONS) == ["leakage: 2", "duplicates: 2", "conflicts: 1", "unreadable: 1"]


def test_files_are_written_and_the_page_is_self_contained(audited: Audit, tmp_path: Path) -> None:
    write_audit(audited, tmp_path / "out", "groundglass data audit 'a <folder>'")
    written = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(document(audited), allow_nan=False))
    assert written["summary"].items() >= {"copies": 2, "copies_across_parts": 1, "label_conflicts": 1}.items()
    assert written["pairs"][0]["second"]["file"].endswith("twin <b>.png")
    assert [row["name"] for row in written["shortcuts"]["baselines"]] == ["file_format", "size", "grey", "surroundings"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 4
    assert ("twin &lt;b&gt;.png" in page, "<b>" in page) == (True, False)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    with (screen := Console(width=80)).capture() as shown:
        screen.print(*audit_tables(audited))
    assert len(re.findall(r"\(\d\.\d{3}–\d\.\d{3}\)", shown.get())) == 5, "not cut apart; three AUCs have none"
    Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")).print(shown.get(), *audited.warnings())


def test_a_clean_data_set_has_nothing(clean: Manifest) -> None:
    clear = audit(clean, shortcuts=False)
    assert (clear.pairs, clear.warnings(), found(clear, CONDITIONS)) == ((), (), [])
    hospitals = [replace(one, source="Bern" if one.label is Label.COVID else "Rome") for one in clean]
    apart = replace(clean, records=(*hospitals, replace(hospitals[0], source="Rome")))
    said = "1 source whose slices all have one label, which it gives away: Bern (COVID)."
    assert replace(clear, data=apart).warnings() == (said,)


def test_without_labels_copies_are_found_and_another_split_has_parts_of_its_own(spoilt: Manifest) -> None:
    result = audit(replace(spoilt, records=tuple(replace(one, label=None, split=None) for one in spoilt)))
    assert (len(result.kinds["copies"]), result.kinds["label_conflicts"], result.parts) == (2, [], {})
    json.dumps(document(result), allow_nan=False)
    result = audit(spoilt, Split("once", {"train": tuple(range(len(spoilt) - 1))}), shortcuts=False)
    leaks, patients = result.kinds["copies_across_parts"], result.crossings["patients_in_several_parts"]
    assert (result.split, leaks, patients, result.unreadable) == ("once", [], {}, ())
    assert len(result.data) == len(spoilt) - 1
    with pytest.raises(DataError, match="none of its 1 slices can be read"):
        audit(replace(spoilt, records=spoilt.records[-1:]))


def test_the_recorded_pairs_of_covid_ct_are_found_and_its_shortcuts(covid_ct: Path, monkeypatch: Patch) -> None:
    """Neighbouring slices of one patient are common here and none is taken for a copy: these were viewed."""
    for name, fewer in (("_RESAMPLES", 20), ("_TREES", 50)):  # no interval is looked at
        monkeypatch.setattr(f"groundglass.audit.shortcuts.{name}", fewer)
    result, recorded = audit(load_dataset(covid_ct)), json.loads(RECORD.read_text(encoding="utf-8"))
    now, before = (
        {(pair["kind"], pair["first"]["file"], pair["second"]["file"]) for pair in each["pairs"]}
        for each in (document(result), recorded)
    )
    assert (now, len(now)) == (before, 20)
    for key in ("summary", "sources_in_several_parts"):
        assert document(result)[key] == recorded[key]
    assert all(pair.correlation > 0.95 for pair in result.kinds["copies"])
    formats, _, grey, surroundings = result.shortcuts.baselines
    assert (formats.tested.slices, formats.tested.accuracy.value) == (203, pytest.approx(0.793, abs=0.0005))
    for baseline, least in ((formats, 0.85), (grey, 0.7), (surroundings, 0.7)):
        assert (baseline.cross_validated.auc.value or 0) > least
