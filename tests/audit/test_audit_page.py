"""The page of an audit: escaping, empty sections, pictures."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from groundglass.audit.report import (
    AuditReport,
    PairGroup,
    ShortcutRow,
    TableSection,
    Tile,
    jpeg_data_uri,
    render_audit,
)
from groundglass.reporting.html import GalleryItem, GalleryPicture

HOSTILE = "<b onclick='x'>&</b>"
EMPTY = AuditReport("title", "subtitle", (), (), (), (), "", (), (), "command")


def test_every_text_is_escaped() -> None:
    picture = GalleryPicture(HOSTILE, HOSTILE, "data:image/jpeg;base64,AA")
    html = render_audit(
        AuditReport(
            title=HOSTILE,
            subtitle=HOSTILE,
            warnings=[HOSTILE],
            tiles=[Tile(HOSTILE, HOSTILE, HOSTILE, alarming=True)],
            groups=[PairGroup(HOSTILE, HOSTILE, [GalleryItem(HOSTILE, [HOSTILE], [picture])])],
            shortcuts=[ShortcutRow(HOSTILE, HOSTILE, (0.9, 0.8, 1.0), None, (0.5, None, None), network=True)],
            shortcuts_words=HOSTILE,
            tables=[TableSection(HOSTILE, HOSTILE, [HOSTILE], [[HOSTILE, HOSTILE]])],
            facts=[(HOSTILE, HOSTILE)],
            command=HOSTILE,
        )
    )
    assert "<b " not in html
    assert html.count("&lt;b onclick=&#39;x&#39;&gt;&amp;&lt;/b&gt;") >= 20
    assert "0.800–1.000" in html
    assert 'class="network"' in html


def test_an_empty_audit_is_a_page() -> None:
    html = render_audit(EMPTY)
    assert "Found in this data set" not in html
    assert "told without a lung" not in html
    assert "default-src 'none'; img-src data:" in html


def test_pictures_are_grey_jpegs() -> None:
    pixels = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    kind, _, content = jpeg_data_uri(pixels).partition(",")
    assert kind == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (48, 64)
    assert np.abs(decoded.astype(int) - pixels).max() < 12
