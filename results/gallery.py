"""Writes docs/gallery.md: overlays of the installed model on phantoms and on slices whose licence allows it.

Usage: python results/gallery.py MANIFEST, which names slices of the sources masks20, iraq and tcga.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from groundglass import load
from groundglass.data.manifest import Record, read_manifest, read_record
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice
from groundglass.inference.classifier import Classifier
from groundglass.inference.report import evidence_picture

DOCS = Path(__file__).parent.parent / "docs"
EACH = 5
SOURCES = {
    "masks20": "COVID-19 (Ma et al., Zenodo 3757476, CC BY 4.0)",
    "iraq": "cancer, benign nodules or normal (Alyasriy and Al-Huseiny, IQ-OTH/NCCD, CC BY 4.0)",
    "tcga": "lung cancer and other parts of the body (Albertina et al., TCGA-LUAD, TCIA, CC BY 3.0)",
}
INTRODUCTION = """# Gallery

What the installed model shows on twenty slices, five of each kind, taken at even distances from their lists: nobody
chose them, and failures stay. Left the slice, right the same with lungs outlined in yellow and lesions in orange. The
network was trained on `masks20` and `iraq`; `tcga` it has not seen, and not all of
`tcga` shows lung. `python results/gallery.py MANIFEST` writes this page. Authors and licences: [NOTICE](../NOTICE).
"""
SEVERITIES = (0.0, 0.15, 0.4, 0.7, 1.0)


def line(classifier: Classifier, ct_slice: CTSlice, name: str) -> str:
    """Write a slice's picture and say what the model says of it."""
    said = classifier.classify(ct_slice, evidence=True)
    if said.evidence is None:
        raise SystemExit(f"{name}: could not be read")
    path = DOCS / "images" / "gallery" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.cvtColor(evidence_picture(said.evidence), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    words = said.reason or f"{said.label}, probability {said.probability:.2f}, lung opacity {said.opacity:.1f} %"
    flags = f" ({', '.join(said.flags)})" if said.flags else ""
    return f"![{name}: {words}](images/gallery/{name}.jpg)\n\n*{name}: {words}{flags}.*\n"


def spread(records: list[Record]) -> list[Record]:
    """Slices at even distances in the manifest's order: nobody chose them."""
    if not records:
        raise SystemExit("the manifest lacks slices of masks20, iraq or tcga")
    return [records[round(place)] for place in np.linspace(0, len(records) - 1, 2 * EACH + 1)[1::2]]


def main(manifest: Path) -> None:
    """Write the page."""
    classifier, records = load(), read_manifest(manifest).records
    parts = [INTRODUCTION, "## Phantoms, from healthy to severe\n"]
    for number, severity in enumerate(SEVERITIES):
        phantom = make_phantom(np.random.default_rng(number), severity, 0.5)
        parts.append(line(classifier, phantom.slice, f"phantom-{severity:.2f}"))
    for source, what in SOURCES.items():
        parts.append(f"## {source}: {what}\n")
        chosen = spread([record for record in records if record.source == source])
        parts += [line(classifier, read_record(each), f"{source}-{each.path.stem}") for each in chosen]
    (DOCS / "gallery.md").write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
