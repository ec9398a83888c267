"""``docs/predict.md`` leaves nothing out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from groundglass.cli import predict
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "predict.md"


def test_the_documentation_names_every_column_flag_option_and_status() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    for name in (*COLUMNS, *IDENTIFIERS, *FLAGS):
        assert f"`{name}`" in text, name
    options = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(predict)))
    assert len(options) >= 10
    for option in options - {"--bundle"}:
        assert option in text, option
    for status in (0, 2, predict.SOME_LEFT_OUT, predict.NONE_CLASSIFIED, predict.INTERRUPTED):
        assert f"\n| {status} | " in text
