"""Ray on this machine: quiet, alone and gone afterwards; a cluster that is not there: one line."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import wait_for

from groundglass.cluster.ray import ray_session
from groundglass.errors import PredictionError

# Not imported here: Ray must be told to keep to this machine before it is.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PredictionError, match=r"pip install '\.\[cluster\]'"), ray_session(None, 1):
        pass


JOIN = """
import sys
from groundglass.cluster import ray as session
session.TIMEOUT = 3.0
for address in sys.argv[1:]:
    try:
        with session.ray_session(address or None, 1):
            print("joined")
    except Exception as error:
        print(type(error).__name__, error)
"""


def child(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python without what a Ray of other tests has set in this process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], **pipes, text=True, env={**clean, **environment}
    )


@pytest.mark.slow
def test_a_cluster_that_cannot_be_joined_is_one_line_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        says_nothing, nobody = (f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, unheard))
        odd = ("nonsense", "host:port", "ray://", "1.2.3.4:99999")
        addresses = [nobody, f"ray://{nobody}", *odd, says_nothing]
        printed, errors = child(JOIN, *addresses).communicate(timeout=120)
    assert errors == ""
    lines = printed.splitlines()
    for line, address in zip(lines, addresses, strict=True):
        assert line.startswith(f"PredictionError {address}: no Ray cluster")
        assert "host:port" in line
    assert "does not answer" in lines[-1]


ALONE = """
import json, os, sys
from groundglass.cluster.ray import ray_session
with ray_session(None, 2) as workers:
    import ray
    print(json.dumps([workers, os.environ.get("RAY_AUTH_MODE")]), flush=True)
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    print("ready", flush=True)
    sys.stdin.read()
print("done", "RAY_AUTH_MODE" in os.environ, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="listening sockets are read from /proc")
def test_a_local_ray_listens_to_this_machine_only_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # A folder of its own, with a short path: sockets lie in it, and other tests may have a Ray of theirs in the usual one.
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    started = child(ALONE, HOME=str(home), TMPDIR=str(temporary))
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == '[2, "token"]\n'
        assert started.stdout.readline() == "ready\n"
        family = descendants(started.pid)
        assert any("raylet" in name for name in family.values()), family
        addresses = listening(set(family))
        assert addresses, "the sockets were found at all"
        assert addresses <= LOOPBACK
    finally:
        rest, errors = started.communicate(timeout=60)
    assert rest == "done False\n"
    assert [line for line in errors.splitlines() if "Set ray log level" not in line] == []
    assert not list(home.iterdir()), "no token is left in the home"
    assert not list(temporary.glob("groundglass-*"))
    wait_for(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()])


@pytest.mark.slow
def test_a_ray_that_cannot_be_kept_to_this_machine_is_not_started() -> None:
    printed, errors = child("import ray\n" + JOIN, "").communicate(timeout=120)
    assert printed.startswith("PredictionError Ray was imported before"), errors


def descendants(pid: int) -> dict[int, str]:
    """Process ids and command lines of a process and all below it."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            after_name = status.read_text(errors="replace").rpartition(")")[2]
            parents[int(status.parent.name)] = int(after_name.split()[1])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return {one: Path(f"/proc/{one}/cmdline").read_text(errors="replace") for one in family}


# 127.0.0.1, the same as IPv6 has it, and ::1, hexadecimal as the kernel writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening(pids: set[int]) -> set[str]:
    """Addresses of the listening TCP sockets of processes."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()
    ]
    sockets = {f"socket:[{line[9]}]": line[1].partition(":")[0] for line in lines if line[3] == "0A"}
    found = set()
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):
            found.add(sockets.get(os.readlink(link), ""))
    return found - {""}
