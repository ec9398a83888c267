"""Who may use the service, where it listens, what its page may do; and whatever is uploaded, it names nobody."""

from __future__ import annotations

import stat
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.imaging.conftest import CHEST, write_ct
from tests.imaging.test_fuzz import GENERATED, damages, generated
from tests.serving.conftest import TOKEN, Running, Start, is_problem, packed, parts
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import ServiceError
from groundglass.serving.settings import Settings

__all__ = ["generated"]

PAGE = {entry.name: entry.read_bytes() for entry in (files("groundglass.serving") / "page").iterdir()}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NAME, ID, FILE, INNER = "Zwiebelfisch^Xaver", "MRN-4711-XZ", "geheim-xyz.dcm", "innen-xyz.dcm"


@pytest.fixture(scope="module")
def guarded(start: Start) -> Running:
    """A service that asks for a token; its client says which."""
    return start(token=TOKEN)


def refusal(*options: object) -> str:
    """What ``groundglass serve`` says instead of starting."""
    done = CliRunner().invoke(app, ["serve", "--port", "0", *map(str, options)])
    return str(done.exception) if isinstance(done.exception, ServiceError) else done.output


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_nothing_beyond_this_machine_without_a_token(
    host: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDGLASS_TOKEN", "")
    said = refusal("--host", host, "--bundle", tiny_bundle)
    assert "refusing to listen beyond this machine without a token" in said
    assert TOKEN not in repr(Settings(host=host, token=TOKEN))
    for near in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert Settings(host=near).token is None


def test_a_short_token_a_port_that_is_taken_and_a_directory_that_is_not_there(
    service: Running, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.disable", lambda: None)
    for content, length in ((TOKEN[:5], 5), ("\n", 0)):
        (tmp_path / "token").write_text(content)
        said = refusal("--token-file", tmp_path / "token")
        assert f"the token has {length} characters, at least 16 are needed" in said
    assert "not exist" in refusal("--token-file", tmp_path / "none")
    assert "cannot be listened at" in refusal("--bundle", tiny_bundle, "--port", service.port)
    assert "/none: uploads cannot be" in refusal("--bundle", tiny_bundle, "--upload-directory", "/none")


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", "Bearer é", f"Bearer {TOKEN}x"]
)
def test_without_the_token_there_is_nothing(guarded: Running, png: bytes, given: str | None) -> None:
    said = {"token": "", "headers": {} if given is None else {"Authorization": given.encode()}}
    paths = ("/v2/model", "/v2/results/x", "/metrics", "/openapi.json", "/nothing")
    answers = [guarded.ask("GET", path, **said) for path in paths]
    answers.append(guarded.ask("POST", "/v2/predictions", files=parts(("a.png", png)), **said))
    for answer in answers:
        is_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.ask("GET", "/healthz", **said).status_code == 200


def test_with_the_token_there_is_everything(
    start: Start, guarded: Running, tmp_path: Path, png: bytes
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    by_file = start("--token-file", str(tmp_path / "token"))
    by_file.token = TOKEN
    for service in (guarded, by_file):
        assert service.post(("a.png", png)).status_code == 200
        assert service.get("/openapi.json").json()["security"] == [{"token": []}]
        assert TOKEN not in service.out + service.err


def test_pages_of_other_sites_may_not_ask(service: Running, png: bytes) -> None:
    origins = (service.url, "https://example.org", "null", "http://127.0.0.1:1", "http://[")
    sent = {"files": parts(("a.png", png))}
    answers = [service.ask("POST", "/v2/predictions", headers={"Origin": each}, **sent) for each in origins]
    assert [answer.status_code for answer in answers] == [200, 403, 403, 403, 403]
    for host in ("example.org", "example.org:80", "127.0.0.1.example.org", "[", "a b"):
        is_problem(service.get("/v2/model", Host=host), 421, "misdirected-request")
    assert service.get("/v2/model", Host=f"localhost:{service.port}").status_code == 200


def test_anybody_gets_the_page_and_nothing_else(guarded: Running) -> None:
    assert guarded.ask("GET", "/", token="").content == PAGE["index.html"]
    for name, file in PAGE.items():
        answer = guarded.ask("GET", f"/page/{name}", token="")
        assert answer.content == file
        assert answer.headers["content-type"].startswith(KINDS[name.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
    for name in ("", "none.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"):
        assert guarded.ask("GET", f"/page/{name}", token="").status_code in {401, 404}


def encrypted(png: bytes) -> bytes:
    content = bytearray(packed({"x.png": png}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def test_a_hostile_file_gets_a_prediction_that_says_why(service: Running, png: bytes) -> None:
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
