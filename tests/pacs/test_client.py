"""The archive's client against servers that misbehave in every way a server can."""

import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Asked, Patch, Said, Server
from tests.pacs.test_report import heat_map_of

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.imaging.source import Limits
from groundglass.pacs.client import Archive, InstanceEntry, SeriesEntry

SERIES = SeriesEntry("1.2", "1.2.3", "CT", 1)
INSTANCE = InstanceEntry("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", 1)
STUDY_UID, SERIES_UID, SOP_UID, SOP_CLASS = "0020000D", "0020000E", "00080018", "00080016"
FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}
FAILED_XML = b"<x><y tag='00081198'><Item><z tag='00081197'><Value>42752</Value></z></Item></y></x>"


def entry(values: dict[str, Any]) -> dict[str, Any]:
    return {tag: {"Value": [value]} for tag, value in values.items()}


def multipart(content: bytes, boundary: str = "xYz") -> Said:
    body = b"--xYz\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--xYz--\r\n"
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return Said(body=body, headers={"Content-Type": kind})


@pytest.fixture
def waits(monkeypatch: Patch) -> list[float]:
    """Seconds that were to be waited; nobody does."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


def test_what_is_wrong_is_said_at_once(server: Server, monkeypatch: Patch) -> None:
    monkeypatch.setenv("GROUNDGLASS_PACS_TOKEN", "hunter2")
    for said, words in (
        (Said(401), "GROUNDGLASS_PACS_TOKEN"),
        (Said(403), "denies access"),
        (Said(404), "is this the DICOMweb root?"),
        (Said(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}), "not a DICOMweb service"),
        (Said.json(["dc961f82"]), "not a DICOMweb service"),
    ):
        server.asked.clear()
        server.says(said)
        with pytest.raises(PacsError, match=words) as caught:
            Archive(server.url).check()
        assert server.url in str(caught.value)
        assert not [unwanted for unwanted in ("\n", "hunter2") if unwanted in str(caught.value)]
        assert len(server.asked) == 1


def test_credentials_come_from_the_environment_or_netrc(server: Server, monkeypatch: Patch, tmp_path: Path) -> None:
    server.says(Said.json([]))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login nina password netrc-word\n")
    (tmp_path / "netrc").chmod(0o600)

    def sent(name: str, value: str) -> str:
        """The credentials, once one more variable is set."""
        monkeypatch.setenv(name, value)
        Archive(server.url).check()
        return server.asked[-1].headers.get("Authorization", "")

    assert sent("NETRC", str(tmp_path / "none")) == ""
    assert sent("NETRC", str(tmp_path / "netrc")) == "Basic bmluYTpuZXRyYy13b3Jk"
    (tmp_path / "netrc").write_text("machine pacs login nina password netrc-word\n")
    assert Archive("http://pacs/x").sends_credentials_in_the_clear
    with pytest.raises(PacsError, match="belong together"):
        sent("GROUNDGLASS_PACS_USER", "ute")
    assert sent("GROUNDGLASS_PACS_PASSWORD", "wörd") == "Basic dXRlOnfDtnJk"
    for url, clear in (("http://localhost/x", False), ("https://pacs/x", False), ("http://pacs/x", True)):
        assert Archive(url).sends_credentials_in_the_clear is clear
    assert sent("GROUNDGLASS_PACS_TOKEN", "t0k3n\n") == "Bearer t0k3n"
    with pytest.raises(PacsError, match="GROUNDGLASS_PACS_TOKEN holds"):
        sent("GROUNDGLASS_PACS_TOKEN", "tök3n")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("ask", [Archive.check, lambda archive: archive.store(heat_map_of())])
def test_faults_are_waited_out(server: Server, status: int, ask: Callable[[Archive], None], waits: list[float]) -> None:
    told: list[str] = []
    server.says(Said(status, headers={"Retry-After": "2"}), Said.json([]) if ask is Archive.check else Said())
    ask(Archive(server.url, on_wait=told.append))
    assert (waits, len(server.asked), len(told)) == ([2], 2, 1)
    assert str(status) in told[0]
    server.says(Said(status, headers={"Retry-After": "3600"}))
    with pytest.raises(PacsUnavailableError, match=str(status)):
        Archive(server.url).check()
    assert waits == [2], "nobody waits for what will not come in time"


def test_studies_are_listed_to_their_end_and_from_a_day_on(server: Server) -> None:
    uids = [f"1.2.{number}" for number in range(5)]
    everything = [entry({STUDY_UID: uid}) for uid in uids]

    def answer(asked: Asked) -> Said:
        offset = int(asked.path.partition("offset=")[2].partition("&")[0])
        return Said.json(everything[offset : offset + 2])

    server.answer = answer
    assert [each.uid for each in Archive(server.url).studies("20260131")] == uids
    assert "ModalitiesInStudy=CT" in server.asked[0].path
    assert "StudyDate=20260131-" in server.asked[0].path
    server.says(Said.json(everything))  # knows no pages
    assert [each.uid for each in Archive(server.url).studies()] == uids
    days = [entry({STUDY_UID: f"1.{day}", "00080020": f"202601{day}"}) for day in (30, 31)]
    server.answer = lambda asked: Said(400) if "?" in asked.path else Said.json([*days, everything[0]])
    assert [each.uid for each in Archive(server.url).studies("20260131")] == ["1.31", uids[0]]


@pytest.mark.parametrize("uid", ["../../admin", "..", "1.2/3", "1." * 40 + "1", "1.2\n", ""])
def test_what_is_no_uid_never_becomes_part_of_a_url(server: Server, uid: str) -> None:
    server.says(Said.json([entry({STUDY_UID: uid})]))
    archive = Archive(server.url)
    (listed,) = archive.studies()
    assert listed.uid == "", "nor of what is printed"
    asked = len(server.asked)
    for odd in (listed.uid, uid):
        with pytest.raises(PacsRefusedError, match="' is no UID"):
            archive.series(odd)
        with pytest.raises(PacsRefusedError, match="no UID"):
            archive.fetch(SERIES, InstanceEntry(INSTANCE.sop_class, odd))
    assert len(server.asked) == asked


@pytest.mark.parametrize("boundary", ["xYz", '"xYz"', None])
def test_an_image_comes_as_it_was_stored(server: Server, boundary: str | None, monkeypatch: Patch) -> None:
    content = b"DICM\r\n--not the end\r\n\r\n\x00\xff"
    plain = Said(body=content, headers={"Content-Type": "application/dicom"})
    server.says(multipart(content, boundary) if boundary else plain)
    assert Archive(server.url).fetch(SERIES, INSTANCE) == content
    assert "transfer-syntax=*" in server.asked[0].headers["Accept"]
    assert server.asked[0].path == "/dicom-web/studies/1.2/series/1.2.3/instances/1.2.3.4"
    monkeypatch.setattr("groundglass.pacs.client.DEFAULT_LIMITS", Limits(file_bytes=len(content) - 1))
    with pytest.raises(PacsRefusedError, match="larger than the limit"):
        Archive(server.url).fetch(SERIES, INSTANCE)
    assert len(server.asked) == 2


@pytest.mark.parametrize("cut", [0, 30, 60])
@pytest.mark.parametrize("announced", [True, False])
def test_a_transfer_that_breaks_off_is_repeated(server: Server, cut: int, waits: list[float], announced: bool) -> None:
    whole = multipart(b"x" * 100)
    body, cut_off = (whole.body, cut) if announced else (whole.body[:cut], None)
    server.says(Said(200, body, whole.headers, cut_off), whole)
    assert Archive(server.url).fetch(SERIES, INSTANCE) == b"x" * 100
    assert (len(server.asked), waits) == (2, [0.5])


def test_what_is_said_of_an_upload(server: Server) -> None:
    for kind, body, reason in (
        ("application/dicom+json", None, "409"),
        ("application/dicom+json", json.dumps(FAILED).encode(), "0xa700"),
        ("application/json; charset=utf-8", json.dumps([FAILED]).encode(), "0xa700"),
        ("text/xml; charset=utf-8", FAILED_XML, "0xa700"),
        ("application/dicom+json", b'{"00081198": {"Value": [{"00081197": null}]}}', "0x0000"),
        ("application/dicom+json", b"[", "cannot be understood"),
        ("application/dicom+xml", b"<broken", "cannot be understood"),
        ("application/dicom+json", b'{"00081198": {"vr": "SQ", "Value": null}, "00081199": null}', None),
        ("application/dicom+xml", b"<NativeDicomModel/>", None),
        ("application/dicom+json", b"[]", "cannot be understood"),
        ("text/html", b"<html>login", "cannot be understood"),
    ):
        server.asked.clear()
        server.says(Said(409) if body is None else Said(200, body, {"Content-Type": kind}))
        with nullcontext() if reason is None else pytest.raises(PacsRefusedError, match=reason):
            Archive(server.url).store(heat_map_of())
        assert [asked.headers["Accept"] for asked in server.asked] == ["application/dicom+json"]
    server.says(Said(301, headers={"Location": server.url}))
    with pytest.raises(PacsError, match="redirects an upload; name the address that it leads to"):
        Archive(server.url).store(heat_map_of())
    for place in (server.url + "/studies", "ftp://x/y", "http://[bad"):  # which costs an image and no run
        server.says(*[Said(302, headers={"Location": place})] * 40)
        with pytest.raises(PacsRefusedError, match="request failed"):
            Archive(server.url).check()


@pytest.mark.parametrize("status", [400, 406])
def test_what_is_not_understood_is_asked_more_plainly(server: Server, status: int) -> None:
    listed = {STUDY_UID: "1.2", SERIES_UID: "1.2.3", SOP_UID: "1.2.3.4", SOP_CLASS: INSTANCE.sop_class}

    def answer(asked: Asked) -> Said:
        if set(",*") & set(asked.headers["Accept"]) or "includefield" in asked.path:
            return Said(status)
        return multipart(b"DICM") if "/instances/" in asked.path else Said.json([entry(listed)])

    server.answer = answer
    archive = Archive(server.url)
    assert [each.uid for each in archive.studies()] == ["1.2"]
    assert archive.series("1.2") == [SeriesEntry("1.2", "1.2.3", "", None)]
    (instance,) = archive.instances(SERIES)
    assert instance.is_ct
    assert archive.fetch(SERIES, instance) == b"DICM"
    server.says(Said(status))
    with pytest.raises(PacsRefusedError, match=str(status)):
        archive.series("1.2")


def test_odd_values_in_a_listing(server: Server) -> None:
    odd = [{}, *({SERIES_UID: value} for value in (None, {"vr": "UI"}, {"Value": [None]}, {"Value": [7]}))]
    padded = entry({SERIES_UID: "1.2.3\0", "00080060": "ct ", "00201209": "5"})
    endless = entry({SERIES_UID: "1.2.4", "00201209": float("inf")}) | {"00080060": {"Value": None}}
    server.says(Said.json([*odd, padded, endless]))
    *without, first, second = Archive(server.url).series("1.2")
    assert without == [SeriesEntry("1.2", "", "", None)] * len(odd)
    assert first == SeriesEntry("1.2", "1.2.3", "CT", 5)
    assert second == SeriesEntry("1.2", "1.2.4", "", None)
    server.says(Said(204))
    assert Archive(server.url).series("1.2") == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
def test_certificates_are_verified(server: Server, monkeypatch: Patch, tmp_path: Path) -> None:
    certificate, key = (str(tmp_path / name) for name in ("certificate.pem", "key.pem"))
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *named]
    subprocess.run(command, check=True, capture_output=True)
    archive = Archive(server.url.replace("http:", "https:"), 0)
    with Patch.context() as patch:
        patch.setattr(server.http, "finish_request", lambda request, address: request.recv(2**16))
        with pytest.raises(PacsUnavailableError, match="cannot be reached"):
            archive.check()  # whose connection just closes
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.says(Said.json([]))
    for bundle in ("", str(tmp_path / "gone.pem")):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with pytest.raises(PacsError, match="REQUESTS_CA_BUNDLE"):
            archive.check()
    assert not server.asked
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    archive.check()
