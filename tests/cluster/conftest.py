"""What tests of prediction by many processes share."""

from __future__ import annotations

from tests.inference.conftest import tiny_bundle

__all__ = ["tiny_bundle"]
