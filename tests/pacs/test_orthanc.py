"""The example of an Orthanc that has arriving chest CT classified, as it is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pydicom
import pytest
from tests.conftest import wait_for
from tests.pacs.conftest import PLUGIN, Orthanc

EXAMPLE = Path(__file__).parents[2] / "examples" / "orthanc"


@pytest.mark.skipif(shutil.which("Orthanc") is None or not PLUGIN.exists(), reason="Orthanc is not here")
def test_arriving_chest_ct_gets_a_report(
    tmp_path: Path, tiny_bundle: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"'{sys.executable}' -m groundglass.cli.main pacs --bundle '{tiny_bundle}'"
    monkeypatch.setenv("GROUNDGLASS_PACS", command)
    example = json.loads((EXAMPLE / "orthanc.json").read_text())
    scripts = [str(EXAMPLE / name) for name in example["LuaScripts"]]
    orthanc = Orthanc(tmp_path, {**example, "StableAge": 1, "LuaScripts": scripts})
    orthanc.start()
    try:
        for path in series:
            foot = pydicom.dcmread(path)
            foot.StudyInstanceUID, foot.SeriesInstanceUID = "1.9", "1.9.1"
            foot.SOPInstanceUID = foot.file_meta.MediaStorageSOPInstanceUID = f"1.9.{path.stem}9"
            foot.PatientID, foot.BodyPartExamined = "another", "FOOT"
            foot.save_as(tmp_path / "foot.dcm")
            orthanc.put(tmp_path / "foot.dcm", path)
        wait_for(lambda: orthanc.objects("SR"))
        (report,) = orthanc.objects("SR")
        assert report.StudyInstanceUID == pydicom.dcmread(series[0]).StudyInstanceUID
        assert len(orthanc.objects("OT")) == len(series)
    finally:
        orthanc.kill()
