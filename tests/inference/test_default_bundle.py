"""The bundle that comes with the installation: small, whole, and as good as its card says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import groundglass
from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_record
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import select_part
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.bundle import DEFAULT, Bundle
from groundglass.inference.calibration import UNCERTAIN
from groundglass.inference.prediction import Status


def test_it_needs_no_network(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "slice.png"), make_phantom(np.random.default_rng(0), level=0.5).slice.pixels)
    script = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "import groundglass\n"
        f"print(groundglass.load().predict({str(tmp_path / 'slice.png')!r}).status.value)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert sum(path.stat().st_size for path in DEFAULT.rglob("*") if path.is_file()) <= 10e6


def test_ill_phantoms_are_more_suspicious_than_healthy_ones() -> None:
    def mean(severity: float) -> float:
        slices = [make_phantom(np.random.default_rng(n), severity, 0.5).slice for n in range(8)]
        return float(np.mean([each.probability for each in groundglass.load().predict(slices)]))

    healthy, mild, severe = mean(0.0), mean(0.15), mean(0.6)
    assert healthy < mild
    assert healthy < severe - 0.3


@pytest.mark.slow
def test_its_figures_are_measured_again_and_few_lung_slices_refused(covid_ct: Path) -> None:
    run, manifest = BundledRun(Bundle.open()), load_dataset(covid_ct)
    for name in ("val", "test"):
        part = select_part(manifest, run.info["split"], name, run.info["seed"])
        predictions = run.predict(read_record(record) for record in part.records)
        assert sum(reason is not None for reason in predictions.refused) <= 0.03 * len(part.label), name
    measured = compute_metrics(part.label, predictions.probability)
    reported = run.bundle.info.metrics["test"]["metrics"]
    # INT8 kernels of other processors round otherwise: a slice at the threshold may fall to its other side.
    assert measured["auc"].value == pytest.approx(reported["auc"]["value"], abs=0.01)
    assert measured["accuracy"].value == pytest.approx(reported["accuracy"]["value"], abs=0.02)


def test_other_planes_and_parts_of_the_body_are_refused(dicom_samples: Path) -> None:
    by_name = {Path(each.file).stem: each for each in groundglass.load().predict_all([dicom_samples])}
    for name in ("coronal-ge", "coronal-toshiba-616", "sagittal-ge"):
        assert by_name[name].status is Status.REFUSED, name
    # A rim of lung above the liver: too little for a firm label.
    assert by_name["abdomen-toshiba"].label in {None, UNCERTAIN}
    severe = by_name["axial-toshiba"]
    assert severe.label != "NonCOVID", "both lungs are full of disease"
    assert severe.opacity > 30
    for name in ("axial-ge", "axial-toshiba", "1-053", "1-130"):
        assert by_name[name].status is Status.OK, name
    # From 1-029 to 1-097 the lungs are in view; above lies the neck.
    assert all(by_name[f"1-{number:03d}"].status is Status.OK for number in range(29, 98, 4))
