"""What tests of prediction by many processes share: a bundle, and one Ray for all of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.inference.conftest import tiny_bundle

from groundglass.cluster.ray import ray_session
from groundglass.inference.bundle import Bundle

__all__ = ["tiny_bundle"]

DEADLY = """
import os, signal
import groundglass.imaging.raster as raster

decode = raster.decode_raster

def kill(content, name, limits):
    if name.endswith("deadly.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("faulty.png"):
        raise_from_nowhere()
    return decode(content, name, limits)

raster.decode_raster = kill
"""


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray in whose workers some files kill their reader."""
    # Not imported here: Ray must be told to keep to this machine before it is.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
        with ray_session(None, 2):
            yield
