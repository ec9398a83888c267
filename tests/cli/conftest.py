"""What tests of the commands share."""

from __future__ import annotations

from tests.inference.conftest import tiny_bundle

__all__ = ["tiny_bundle"]
