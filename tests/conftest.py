"""Fixtures shared by all tests: real data where it lies beside the checkout, skipped with a reason where not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """A shell script that starts tests in the background makes them, and all they start, deaf to interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"real data not here: {path}")
    return path


@pytest.fixture(scope="session")
def covid_ct() -> Path:
    """The COVID-CT data set as published, official split included."""
    return _shared("covid-ct")


@pytest.fixture(scope="session")
def luna_slices() -> Path:
    """1,000 lesion-free lung slices."""
    return _shared("luna-slices")


@pytest.fixture(scope="session")
def dicom_samples() -> Path:
    """DICOM files of several makers, planes and transfer syntaxes."""
    return _shared("dicom")


@pytest.fixture(scope="session")
def hospitals() -> Path:
    """Slices of thirteen sources with lung and lesion masks for some, named by a manifest."""
    return _shared("hospitals")
