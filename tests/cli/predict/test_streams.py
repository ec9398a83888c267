"""Standard streams that are full, closed or pipes; and a process that is told to end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from tests.cli.predict.conftest import command, png, write_pictures
from tests.conftest import wait_for

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
FULL = "error: standard output cannot be written (No space left on device)"


def shell(bundle: Path, arguments: str, redirected: str) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.join(command(bundle))} {arguments} {redirected}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "redirected", "status", "err"),
    [
        ("--json", ">/dev/full", 2, FULL),
        ("--csv", ">/dev/full", 2, FULL),
        ("", ">/dev/full", 2, FULL),
        ("--help", ">/dev/full", 2, FULL),
        ("--quiet", ">/dev/full", 0, ""),
        ("--json", ">&-", 0, "6 slices: 6 classified"),
        ("", ">&-", 0, ""),
        ("--json", "2>&-", 0, ""),
        ("--json", "2>/dev/full", 0, ""),
        ("--json", "<&- 2>&-", 0, ""),
        ("", ">/dev/full 2>/dev/full", 2, ""),
        ("gone.png", "2>/dev/full", 2, ""),
    ],
)
def test_full_and_closed_streams(
    pictures: Path, tiny_bundle: Path, option: str, redirected: str, status: int, err: str
) -> None:
    done = shell(tiny_bundle, f"{pictures} {option}", redirected)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(err)
    assert done.stderr.startswith(err)
    if option == "--json" and ">" not in redirected.replace("2>", ""):
        assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok"] * 6


def test_a_closed_stream_is_no_file(pictures: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert shell(tiny_bundle, f"{pictures} --output {out}", ">&- 2>&- <&-").returncode == 0
    assert [json.loads(line)["status"] for line in out.read_text().splitlines()] == ["ok"] * 6


def test_standard_input_and_pipes_are_read(pictures: Path, tiny_bundle: Path) -> None:
    done = shell(tiny_bundle, f"- <(cat {pictures}/1.png) --json", f"< {pictures}/0.png")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [row["file"][:8] for row in rows] == ["-", "/dev/fd/"]
    direct = shell(tiny_bundle, f"{pictures}/0.png {pictures}/1.png --json", "")
    expected = [json.loads(line)["probability"] for line in direct.stdout.splitlines()]
    assert [row["probability"] for row in rows] == expected


def test_nothing_on_standard_input_is_explained(tiny_bundle: Path, tmp_path: Path) -> None:
    done = shell(tiny_bundle, "- --json", "</dev/null")
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (4, "the file is empty")
    (tmp_path / "-").write_bytes(png(1))
    words = command(tiny_bundle, "-", "--json")
    done = subprocess.run(words, capture_output=True, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    assert json.loads(done.stdout)["status"] == "ok", "a file of that name means itself"


@pytest.mark.parametrize(
    ("name", "signalled"),
    [
        ("out.csv", "SIGTERM"),
        ("out.parquet", "SIGTERM"),
        ("out", "SIGTERM"),
        ("out.csv", "SIGHUP"),
        ("out.csv", "SIGINT"),
    ],
)
def test_told_to_end_it_leaves_no_temporary(
    tmp_path: Path, tiny_bundle: Path, name: str, signalled: str
) -> None:
    number = signal.Signals[signalled]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("hang-ups are ignored here, as under nohup, and a child inherits that")
    many, temporaries = write_pictures(tmp_path / "many", 400), tmp_path / "tmp"
    temporaries.mkdir()
    with subprocess.Popen(
        command(tiny_bundle, many, "--output", tmp_path / name, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporaries)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == (b"interrupted" if number is signal.SIGINT else b"")
    left = {path.name for path in tmp_path.iterdir()} - {"many", "tmp"}
    assert left == ({"out"} if name == "out" else set())
    assert list(temporaries.iterdir()) == []


def test_waiting_for_standard_input_it_can_be_told_to_end(tiny_bundle: Path) -> None:
    with subprocess.Popen(command(tiny_bundle, "-"), stdin=subprocess.PIPE) as process:
        held = Path(f"/proc/{process.pid}/fd")

        # Standard input has a second number while it is read.
        def opened() -> list[str]:
            return [os.readlink(fd) for fd in held.iterdir() if fd.exists()]

        wait_for(lambda: opened().count(os.readlink(held / "0")) > 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
