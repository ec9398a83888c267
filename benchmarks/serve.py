"""``groundglass serve`` on loopback: throughput against ``groundglass predict``, waiting, memory, its end.

The load comes from wrk (https://github.com/wg/wrk; ``apt-get install wrk``), which shares the cores with the
service. Service and command take turns, and each round gives one ratio.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from groundglass.data.load import load_dataset
from groundglass.data.phantoms import write_phantoms
from groundglass.inference.bundle import Bundle
from process import run
from record import RESULTS, Goal, Table, report

SCRIPTS = Path(__file__).parent
CLIENTS, RATIO_GOAL, GROWTH_GOAL = 32, 0.9, 5.0
BOUNDARY = "groundglass-benchmark"
BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Plan:
    """How long everything takes.

    Attributes:
        slices: different files that are sent.
        rounds: turns of service and command.
        seconds: of load in each round.
        soak: seconds of load over which memory is watched.
        ends: how often the service is ended under load.
    """

    slices: int
    rounds: int
    seconds: int
    soak: int
    ends: int


def main(
    data: Annotated[Path | None, typer.Option(help="COVID-CT or any data set; otherwise phantoms.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="The model; the installed one unless given.")] = None,
    quick: Annotated[
        bool, typer.Option(help="A smoke test: seconds instead of minutes, no record unless --output.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Measure throughput, waiting times, memory and the end of `groundglass serve`."""
    if shutil.which("wrk") is None:
        sys.exit("wrk, which makes the load, is not installed: apt-get install wrk")
    plan = Plan(20, 1, 5, 10, 1) if quick else Plan(300, 5, 30, 600, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _files(data, plan.slices, folder)
        listed, uploads = folder / "files.json", _uploads(files, folder / "uploads")
        listed.write_text(json.dumps(files), encoding="utf-8")
        measured = {
            "slices": {"data": data.name if data is not None else "phantoms", "count": len(files)},
            "batches": _batches(bundle),
            "rounds": _rounds(listed, uploads, bundle, plan, folder),
            "soak": _soak(uploads, bundle, plan, folder),
            "ends": [_end(uploads, bundle, folder) for _ in range(plan.ends)],
        }
    _report(measured, output or (None if quick else RESULTS))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _files(data: Path | None, count: int, folder: Path) -> list[str]:
    if data is None:
        records = write_phantoms(folder / "phantoms", count, (0.2, 0.8)).records
    else:
        records = load_dataset(data).records
    paths = [str(record.path.resolve()) for record in records if record.path.is_file()]
    return [paths[index] for index in np.unique(np.linspace(0, len(paths) - 1, count).astype(int))]


def _uploads(files: Sequence[str], folder: Path) -> Path:
    """A file that lists the bodies of one request for each file."""
    folder.mkdir()
    paths = []
    for number, file in enumerate(files):
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{number}"\r\n\r\n'
        path = folder / str(number)
        path.write_bytes(head.encode() + Path(file).read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode())
        paths.append(str(path))
    listed = folder / "list"
    listed.write_text("\n".join(paths) + "\n", encoding="utf-8")
    return listed


def _batches(bundle: Path | None) -> dict[str, float]:
    """Milliseconds of one core for each slice, by the number of slices in a batch; medians."""
    opened = Bundle.open(bundle, threads=1)
    engine, size = opened.engine(), opened.info.preprocessing.size
    images = np.random.default_rng(0).normal(size=(max(BATCHES), size, size)).astype(np.float32)
    taken: dict[str, list[float]] = {str(count): [] for count in BATCHES}
    for _ in range(5):
        for count in BATCHES:
            engine.run(images[:count])  # another size has just used the memory
            for _ in range(5):
                start = time.thread_time()
                engine.run(images[:count])
                taken[str(count)].append((time.thread_time() - start) * 1000 / count)
    return {count: statistics.median(each) for count, each in taken.items()}


@contextmanager
def _service(bundle: Path | None, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service and its port."""
    chosen = [] if bundle is None else ["--bundle", str(bundle)]
    command = [sys.executable, "-m", "groundglass.cli.main", "serve", "--port", "0", *chosen]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream)
    try:
        while b"\n" not in log.read_bytes():
            if process.poll() is not None:
                sys.exit("the service did not start")
            time.sleep(0.05)
        yield process, int(json.loads(log.read_text(encoding="utf-8").splitlines()[0])["port"])
    finally:
        process.terminate()
        process.wait()


def _load(port: int, uploads: Path, seconds: int, folder: Path) -> dict[str, float]:
    """Load by all clients for so long."""
    figures = folder / "figures.json"
    command = ["wrk", "--threads", "2", "--connections", str(CLIENTS), "--timeout", "60s"]
    command += ["--duration", f"{seconds}s", "--script", str(SCRIPTS / "serve.lua"), f"http://127.0.0.1:{port}"]
    environment = {**os.environ, "GROUNDGLASS_FIGURES": str(figures)}
    subprocess.run([*command, "--", str(uploads), BOUNDARY], env=environment, check=True, stdout=subprocess.DEVNULL)
    row: dict[str, float] = json.loads(figures.read_text(encoding="utf-8"))
    row["errors"] = row["socket_errors"] + row["status_errors"] + row["timeouts"]
    row["slices_per_second"] = row["requests"] / row["seconds"]
    return row


def _rounds(listed: Path, uploads: Path, bundle: Path | None, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(plan.rounds):
        chosen = [] if bundle is None else ["--bundle", str(bundle)]
        run([sys.executable, str(SCRIPTS / "classify.py"), str(listed), str(folder / "row.json"), *chosen])
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        predict = row["slices"] / row["seconds"]
        with _service(bundle, folder) as (_, port):
            _load(port, uploads, max(2, plan.seconds // 6), folder)  # warms up
            served = _load(port, uploads, plan.seconds, folder)
        rows.append({"predict": predict, "serve": served, "ratio": served["slices_per_second"] / predict})
        _say(f"round {number + 1} of {plan.rounds}: {rows[-1]}")
    return rows


def _soak(uploads: Path, bundle: Path | None, plan: Plan, folder: Path) -> dict[str, Any]:
    """Resident memory under load, sampled through its whole length; the first sixth warms up."""
    with _service(bundle, folder) as (process, port):
        samples: list[tuple[float, float]] = []
        over = threading.Event()

        def watch() -> None:
            begun = time.monotonic()
            while not over.wait(max(0.5, plan.soak / 120)):
                samples.append((time.monotonic() - begun, _resident_mib(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        served = _load(port, uploads, plan.soak, folder)
        over.set()
        watcher.join()
    warm = [memory for seconds, memory in samples if seconds > plan.soak / 6]
    third = max(1, len(warm) // 3)
    first, last = statistics.median(warm[:third]), statistics.median(warm[-third:])
    growth = 100 * (last - first) / first
    _say(f"soak: {first:.0f} to {last:.0f} MiB, {served}")
    return {"serve": served, "samples": samples, "first_mib": first, "last_mib": last, "growth_percent": growth}


def _resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _end(uploads: Path, bundle: Path | None, folder: Path) -> dict[str, Any]:
    """End the service under load, and hold what clients got against what it says it took on."""
    body = Path(uploads.read_text(encoding="utf-8").splitlines()[0]).read_bytes()
    outcomes: Counter[str] = Counter()
    with _service(bundle, folder) as (process, port):
        clients = [threading.Thread(target=_ask, args=(port, body, outcomes)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        status = process.wait()
        seconds = time.monotonic() - start
        for client in clients:
            client.join()
    entries = [json.loads(line) for line in (folder / "log").read_text(encoding="utf-8").splitlines()]
    accepted = sum(entry["event"] == "request" for entry in entries)
    answered = sum(count for outcome, count in outcomes.items() if outcome.isdecimal())
    # A request that dies is logged by nobody as such: what was under way at the end is lost, and what was cut off.
    lost = sum(entry["unfinished"] for entry in entries if entry["event"] == "ended")
    lost += sum(entry["event"] == "request" and not entry["complete"] for entry in entries) + (status != 0)
    row = {"accepted": accepted, "answered": answered, "lost": max(lost, accepted - answered), "status": status}
    _say(f"end: {row}, {dict(outcomes)}")
    return {**row, "seconds": seconds, "outcomes": dict(outcomes)}


def _ask(port: int, body: bytes, outcomes: Counter[str]) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("POST", "/v2/predictions", body, headers)
            answer = connection.getresponse()
            answer.read()
            outcomes[str(answer.status)] += 1
        except ConnectionRefusedError:
            return
        except (OSError, http.client.HTTPException) as error:
            outcomes[type(error).__name__] += 1
        finally:
            connection.close()


def _report(measured: dict[str, Any], output: Path | None) -> None:
    rounds, soak, ends = measured["rounds"], measured["soak"], measured["ends"]
    ratio = statistics.median(row["ratio"] for row in rounds)
    errors = sum(row["serve"]["errors"] for row in rounds) + soak["serve"]["errors"]
    goals = [
        Goal(f"times the slices per second of groundglass predict, {CLIENTS} clients", RATIO_GOAL, False, ratio),
        Goal("errors", 0, True, errors),
        Goal("growth of resident memory during the soak, %", GROWTH_GOAL, True, soak["growth_percent"]),
        Goal("accepted requests lost at SIGTERM under load", 0, True, sum(row["lost"] for row in ends)),
    ]
    report("serve", output, measured, goals, _tables(measured))


def _tables(measured: dict[str, Any]) -> list[Table]:
    about, soak = measured["slices"], measured["soak"]
    served = [row["serve"] for row in measured["rounds"]]
    rows = [
        ("groundglass predict, slices/s", [row["predict"] for row in measured["rounds"]]),
        ("groundglass serve, slices/s", [row["slices_per_second"] for row in served]),
        ("half of the requests answered within, ms", [row["p50_ms"] for row in served]),
        ("99 % within, ms", [row["p99_ms"] for row in served]),
        ("all within, ms", [row["max_ms"] for row in served]),
    ]
    return [
        Table(
            f"{CLIENTS} clients, one file in each request, {about['count']} files of {about['data']}; the "
            f"load generator on the same cores; {len(rows[0][1])} rounds",
            ("what", "median", "min", "max"),
            [(name, statistics.median(each), min(each), max(each)) for name, each in rows],
        ),
        Table(
            f"Soak of {soak['serve']['seconds'] / 60:.1f} minutes",
            ("requests", "errors", "99 % within, ms", "MiB early", "MiB late"),
            [
                (
                    f"{soak['serve']['requests']:,}",
                    soak["serve"]["errors"],
                    soak["serve"]["p99_ms"],
                    soak["first_mib"],
                    soak["last_mib"],
                )
            ],
        ),
        Table(
            "SIGTERM under load",
            ("accepted", "answered", "lost", "seconds to the end"),
            [(f"{row['accepted']:,}", f"{row['answered']:,}", row["lost"], row["seconds"]) for row in measured["ends"]],
        ),
        Table(
            "Batches: processor time of the network for each slice",
            ("slices in a batch", "ms"),
            list(measured["batches"].items()),
        ),
    ]


if __name__ == "__main__":
    typer.run(main)
