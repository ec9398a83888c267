"""What the web page is made of: who may have it, under which policy, and that it asks nobody else."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from tests.serving.service.conftest import TOKEN, Running, Start
from tests.serving.service.test_limits import is_problem

PAGE = {entry.name: entry.read_bytes() for entry in (files("groundglass.serving") / "page").iterdir()}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def guarded(start: Start) -> Running:
    """A service that asks for a token."""
    return start(token=TOKEN)


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
