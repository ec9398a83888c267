"""Who may use the service, where it listens, and what its page may do."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from tests.serving.conftest import TOKEN, Running, Start, is_problem, parts
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import ServiceError
from groundglass.serving.security import read_token
from groundglass.serving.settings import Settings


@pytest.fixture(scope="module")
def guarded(start: Start) -> Running:
    """A service that asks for a token."""
    return start(token=TOKEN)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_nothing_beyond_this_machine_without_a_token(
    host: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GROUNDGLASS_TOKEN", raising=False)
    done = CliRunner().invoke(app, ["serve", "--host", host, "--port", "0", "--bundle", str(tiny_bundle)])
    assert isinstance(done.exception, ServiceError)
    assert "refusing to listen beyond this machine without a token" in str(done.exception)
    Settings(host=host, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert Settings(host=host).token is None


def test_a_token_must_be_long_enough_and_readable(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="at least 16 are needed"):
        Settings(token=TOKEN[:5])
    assert TOKEN not in repr(Settings(token=TOKEN))
    with pytest.raises(ServiceError, match="cannot be read"):
        read_token(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ServiceError, match="holds no token"):
        read_token(tmp_path / "empty")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", "Bearer é", f"Bearer {TOKEN}x"]
)
def test_without_the_token_there_is_nothing(guarded: Running, png: bytes, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    with guarded.client() as client:
        del client.headers["Authorization"]
        for path in ("/v2/model", "/v2/results/x", "/metrics", "/openapi.json", "/nothing"):
            answer = client.get(path, headers=headers)
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        is_problem(
            client.post("/v2/predictions", files=parts(("a.png", png)), headers=headers), 401, "unauthorized"
        )
        assert client.get("/healthz", headers=headers).status_code == 200


def test_with_the_token_there_is_everything(guarded: Running, png: bytes) -> None:
    assert guarded.post(("a.png", png)).status_code == 200
    assert guarded.get("/openapi.json").json()["security"] == [{"token": []}]
    assert TOKEN not in guarded.out.read_text() + guarded.err.read_text()


def test_pages_of_other_sites_may_not_ask(service: Running, png: bytes) -> None:
    files = parts(("a.png", png))
    with service.client() as client:
        own = {"Origin": service.url}
        assert client.post("/v2/predictions", files=files, headers=own).status_code == 200
        for origin in ("https://example.org", "null", "http://127.0.0.1:1", "http://["):
            answer = client.post("/v2/predictions", files=files, headers={"Origin": origin})
            is_problem(answer, 403, "cross-site")
        for host in ("example.org", "example.org:80", "127.0.0.1.example.org", "[", "a b"):
            is_problem(client.get("/v2/model", headers={"Host": host}), 421, "misdirected-request")
        assert client.get("/v2/model", headers={"Host": f"localhost:{service.port}"}).status_code == 200


def test_a_port_that_is_taken(service: Running, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.disable", lambda: None)
    done = CliRunner().invoke(app, ["serve", "--port", str(service.port), "--bundle", str(tiny_bundle)])
    assert isinstance(done.exception, ServiceError)
    assert "cannot be listened at" in str(done.exception)


PAGE = {entry.name: entry.read_bytes() for entry in (files("groundglass.serving") / "page").iterdir()}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def test_anybody_gets_the_page_and_nothing_else(guarded: Running) -> None:
    with guarded.client() as client:
        del client.headers["Authorization"]
        assert client.get("/").content == PAGE["index.html"]
        for name, file in PAGE.items():
            answer = client.get(f"/page/{name}")
            assert answer.content == file
            assert answer.headers["content-type"].startswith(KINDS[name.rpartition(".")[2]])
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in answer.headers
        for path in (
            "/page/",
            "/page/none.js",
            "/page/..%2fapp.py",
            "/page/%2e%2e/app.py",
            "/page/__init__.py",
        ):
            assert client.get(path).status_code in {401, 404}
        is_problem(client.get("/page/none.js"), 404, "not-found")
        is_problem(client.get("/v2/model"), 401, "unauthorized")


def test_the_policy_allows_this_service_alone(service: Running) -> None:
    policy = dict(
        rule.split(" ", 1) for rule in service.get("/").headers["content-security-policy"].split("; ")
    )
    assert policy.pop("default-src") == "'none'"
    for directive in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy.pop(directive) == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy) == {"script-src", "style-src", "img-src", "connect-src"}
    assert set(policy.values()) == {"'self'"}


def test_the_page_holds_nothing_inline_and_names_no_other_host() -> None:
    html = PAGE["index.html"].decode()
    assert re.findall(r"<script(?! type=\"module\" src=\"/page/)|<style|\sstyle=|\son\w+=", html) == []
    for name, file in PAGE.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name


def test_the_page_is_no_part_of_the_description(service: Running) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert "/v2/predictions" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/page")]
