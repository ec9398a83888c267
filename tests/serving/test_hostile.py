"""Whatever is uploaded, the service answers, goes on, keeps nothing and names nobody."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.imaging.conftest import CHEST, write_ct
from tests.imaging.test_fuzz import GENERATED, damages, generated
from tests.serving.conftest import Running, Start

__all__ = ["generated"]

NAME, ID, FILE, INNER = "Zwiebelfisch^Xaver", "MRN-4711-XZ", "geheim-xyz.dcm", "innen-xyz.dcm"


def packed(members: dict[str, bytes], mode: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(member, content)
    return stream.getvalue()


def encrypted(png: bytes) -> bytes:
    content = bytearray(packed({"x.png": png}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def test_each_gets_a_prediction_that_says_why(service: Running, png: bytes) -> None:
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = "
    hostile = {
        "bomb.zip": (packed({"bomb.png": bytes(40_000_000)}), "decompression bomb"),
        "out.zip": (packed({"../evil.png": png}), "leads out of the archive"),
        "root.zip": (packed({"/etc/evil.png": png}), "leads out of the archive"),
        "link.zip": (packed({"link.png": b"/etc/passwd"}, stat.S_IFLNK | 0o777), "a link"),
        "nested.zip": (packed({"really.png": packed({"x.png": png})}), "an archive within an archive"),
        "locked.zip": (encrypted(png), "encrypted"),
        "cut.zip": (packed({"x.png": png})[:-30], ""),
        "cut.png": (png[:80], ""),
        "not-a.dcm": (bytes(128) + b"DICM" + bytes(40), ""),
        "bare.nii.gz": (b"\x1f\x8b" + bytes(100), ""),
        "outside.mhd": (header + b"../../../../etc/passwd\n", ""),
    }
    rows = service.rows(*((name, content) for name, (content, _) in hostile.items()), ("good.png", png))
    by_file = {row["file"].partition("!")[0]: row for row in rows}
    assert by_file.pop("good.png")["status"] == "ok", "one bad file never stops the rest"
    assert set(by_file) == set(hostile)
    for name, (content, reason) in hostile.items():
        assert by_file[name]["status"] == "failed"
        assert reason in by_file[name]["reason"]
        assert str(service.uploads) not in by_file[name]["reason"]
        assert service.post((name, content)).status_code in {200, 415}, "alone as well"
    assert service.is_clean()


def test_damaged_files_of_every_kind(service: Running, generated: dict[str, bytes]) -> None:
    @settings(
        max_examples=100, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(GENERATED).flatmap(lambda kind: damages(generated[kind])))
    def check(content: bytes) -> None:
        assert service.post(("damaged", content), keep="true").status_code in {200, 415}

    check()
    assert service.is_clean()
    assert not [entry for entry in service.log() if entry["level"] == "error"]


def test_nobody_is_named_in_the_log(start: Start, tmp_path: Path) -> None:
    service = start()
    who = {"PatientName": NAME, "PatientID": ID, "SeriesInstanceUID": "1.2.3.4.5.987654321"}
    content = write_ct(tmp_path / "a.dcm", np.kron(CHEST, np.ones((2, 2), np.int16)), **who).read_bytes()
    broken = content.replace(b"MONOCHROME2 ", b"PALETTE COLO")
    for file in (content, broken, content[:1500], packed({INNER: content, "geheim-xyz.png": b"bad"})):
        answer = service.post((FILE, file), keep="true")
        links = answer.json()["kept"]["links"]
        for told in (answer, *(service.get(link, **{"User-Agent": ID}) for link in links.values())):
            assert NAME not in told.text
            assert ID not in told.text
        service.get(f"/{NAME}?id={ID}")
    assert service.stop() == 0
    secrets = (NAME, ID, "xyz", "987654321", links["self"].rpartition("/")[2], str(service.uploads))
    assert not [secret for secret in secrets if secret in service.out + service.err]
    assert service.says_where_it_is()
