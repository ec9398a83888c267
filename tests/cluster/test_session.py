"""Ray on this machine: quiet, alone and gone afterwards; a cluster that is not there: one line."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundglass.cluster.ray import ray_session
from groundglass.errors import PredictionError

# Not imported here: Ray must be told to keep to this machine before it is.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(PredictionError, match=r"pip install '\.\[cluster\]'"),
        ray_session(None, 1),
    ):
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


@pytest.mark.slow
def test_a_cluster_that_cannot_be_joined_is_one_line_each(closed_port: int, silent_port: int) -> None:
    addresses = [f"127.0.0.1:{silent_port}", f"127.0.0.1:{closed_port}", f"ray://127.0.0.1:{closed_port}"]
    addresses = [*addresses[1:], "nonsense", "host:port", "ray://", "1.2.3.4:99999", addresses[0]]
    done = subprocess.run(
        [sys.executable, "-c", JOIN, *addresses], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(addresses)
    for line, address in zip(lines, addresses, strict=True):
        assert line.startswith(f"PredictionError {address}: no Ray cluster")
        assert "host:port" in line
    assert "does not answer" in lines[-1]


def without_ray() -> dict[str, str]:
    """This process' environment without what a Ray of other tests has set in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


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
    environment = {**without_ray(), "HOME": str(home), "TMPDIR": str(temporary)}
    child = subprocess.Popen(
        [sys.executable, "-c", ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == '[2, "token"]\n'
        assert child.stdout.readline() == "ready\n"
        family = descendants(child.pid)
        assert any("raylet" in name for name in family.values()), family
        open_to_all = [
            (family[pid], address) for pid, address in listening(set(family)) if not is_loopback(address)
        ]
        assert not open_to_all
        assert listening(set(family)), "the sockets were found at all"
    finally:
        rest, errors = child.communicate(timeout=60)
    assert rest == "done False\n"
    assert errors == ""
    assert not list(home.iterdir()), "no token is left in the home"
    assert not list(temporary.glob("groundglass-*"))
    deadline = time.monotonic() + 30
    while (left := [pid for pid in family if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


@pytest.mark.slow
def test_a_ray_that_cannot_be_kept_to_this_machine_is_not_started() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ray\n" + JOIN, ""],
        env=without_ray(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("PredictionError Ray was imported before"), done.stderr


def descendants(pid: int) -> dict[int, str]:
    """Process ids and command lines of a process and all below it."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text(errors="replace")
        except OSError:
            continue
        parents[int(status.parent.name)] = int(text.rpartition(")")[2].split()[1])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return {one: Path(f"/proc/{one}/cmdline").read_text(errors="replace") for one in family}


def listening(pids: set[int]) -> list[tuple[int, str]]:
    """Process id and address (hexadecimal, as the kernel writes it) of each listening TCP socket."""
    sockets: dict[str, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[fields[9]] = fields[1].partition(":")[0]
    found = []
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in sockets:
                found.append((pid, sockets[inode]))
    return found


def is_loopback(address: str) -> bool:
    """Whether an address of ``/proc/net/tcp`` or ``tcp6`` is 127.0.0.1 or ::1, in whatever dress."""
    mapped = "0000000000000000FFFF0000"
    return address.removeprefix(mapped) == "0100007F" or address == "00000000000000000000000001000000"
