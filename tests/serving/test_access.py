"""Who may use the service, where it listens, and what its page may do."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from tests.serving.conftest import TOKEN, Running, Start, is_problem, parts
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import ServiceError
from groundglass.serving.settings import Settings

PAGE = {entry.name: entry.read_bytes() for entry in (files("groundglass.serving") / "page").iterdir()}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def guarded(start: Start) -> Running:
    """A service that asks for a token; its client says which."""
    return start(token=TOKEN)


def refusal(*options: str) -> str:
    """What ``groundglass serve`` says instead of starting."""
    done = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    return str(done.exception) if isinstance(done.exception, ServiceError) else done.output


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_nothing_beyond_this_machine_without_a_token(
    host: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDGLASS_TOKEN", "")
    said = refusal("--host", host, "--bundle", str(tiny_bundle))
    assert "refusing to listen beyond this machine without a token" in said
    Settings(host=host, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert Settings(host=host).token is None


def test_a_token_must_be_long_enough_and_readable(tmp_path: Path) -> None:
    for content, length in ((TOKEN[:5], 5), ("\n", 0)):
        (tmp_path / "token").write_text(content)
        said = refusal("--token-file", str(tmp_path / "token"))
        assert f"the token has {length} characters, at least 16 are needed" in said
    assert "not exist" in refusal("--token-file", str(tmp_path / "none"))
    assert TOKEN not in repr(Settings(token=TOKEN))


def test_a_port_that_is_taken_and_a_directory_that_is_not_there(
    service: Running, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.disable", lambda: None)
    bundle = ("--bundle", str(tiny_bundle))
    assert "cannot be listened at" in refusal(*bundle, "--port", str(service.port))
    assert "/none: uploads cannot be stored there" in refusal(*bundle, "--upload-directory", "/none")


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", "Bearer é", f"Bearer {TOKEN}x"]
)
def test_without_the_token_there_is_nothing(guarded: Running, png: bytes, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    with guarded.client(token="") as client:
        paths = ("/v2/model", "/v2/results/x", "/metrics", "/openapi.json", "/nothing")
        answers = [client.get(path, headers=headers) for path in paths]
        answers.append(client.post("/v2/predictions", files=parts(("a.png", png)), headers=headers))
        for answer in answers:
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz", headers=headers).status_code == 200


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
    with guarded.client(token="") as client:
        assert client.get("/").content == PAGE["index.html"]
        for name, file in PAGE.items():
            answer = client.get(f"/page/{name}")
            assert answer.content == file
            assert answer.headers["content-type"].startswith(KINDS[name.rpartition(".")[2]])
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in answer.headers
        for name in ("", "none.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"):
            assert client.get(f"/page/{name}").status_code in {401, 404}
