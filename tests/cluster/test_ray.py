"""Many workers say what one process says, whatever happens to them; their Ray is quiet, alone and gone afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.conftest import wait_for

from groundglass.cluster.ray import LARGEST, RayClassifier, ray_session
from groundglass.errors import DataError, PredictionError
from groundglass.imaging.phantom import make_phantom, write_dicom
from groundglass.inference.bundle import MODEL, Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction, Status

# Not imported here: Ray must be told to keep to this machine before it is.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
Spread = Callable[..., list[Prediction]]
Run = Callable[..., tuple[int, str, str]]
DEADLY = """
import os, signal
import groundglass.imaging.raster as raster

decode = raster.decode_raster

def kill(content, name, *rest):
    if name.endswith("deadly.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("faulty.png"):
        raise_from_nowhere()
    return decode(content, name, *rest)

raster.decode_raster = kill
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 slices in ``many``, ten, a series, a zip, and what can go wrong: broken, coloured, empty, no image, no UTF-8."""
    folder = tmp_path_factory.mktemp("slices")
    (folder / "many").mkdir()
    for number in range(10):
        phantom = make_phantom(np.random.default_rng(number), 0.4, 0.5, size=128)
        cv2.imwrite(str(folder / f"{number}.png"), phantom.slice.pixels)
        if number < 3:
            write_dicom(phantom, folder / "series" / f"{number}.dcm")
    for number in range(300):
        os.link(folder / f"{number % 10}.png", folder / "many" / f"{number}.png")
    (folder / "3b.png").write_bytes((folder / "3.png").read_bytes()[:500])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    os.link(folder / "3.png", folder / "ä\udcff.png")
    cv2.imwrite(str(folder / "5b.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for name in ("0.png", "3b.png"):
            archive.write(folder / name, f"inside/{name}")
    return folder


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray in whose workers some files kill their reader."""
    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(DEADLY)
    with ExitStack() as running:
        # Ray's processes keep what they start with; the tests that come after must not.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
            running.enter_context(ray_session(None, 2))
        yield


@pytest.fixture
def spread(two_workers: None, classifier: Classifier) -> Spread:
    """What two workers say of paths."""
    return lambda paths, workers=2, **options: list(
        RayClassifier(classifier.bundle, workers, **options).predict_all(paths)
    )


@pytest.fixture
def run(tiny_bundle: Path, run_command: Run) -> Run:
    """Runs ``groundglass predict --engine ray`` in this process with the tiny bundle."""
    return lambda *words: run_command("predict", "--bundle", tiny_bundle, "--engine", "ray", *words)


def workers(*doing: str) -> list[int]:
    """Process ids of Ray's workers that do one of these."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "cmdline").read_text(errors="replace").startswith(doing):
                found.append(int(place.name))
    return found


@pytest.mark.slow
def test_a_manifest_becomes_the_rows_that_one_process_writes(
    two_workers: None, run: Run, folder: Path, tmp_path: Path
) -> None:
    from pyarrow import parquet

    manifest = tmp_path / "slices.csv"
    names = "".join(f"{path}\n" for path in [*sorted((folder / "many").iterdir()), folder / "3b.png"])
    manifest.write_text(f"path\n{names}gone.png\n")
    tables = []
    for name, options in (("ray", ("--workers", 2)), ("local", ("--engine", "local"))):
        status, printed, errors = run(manifest, *options, "--json", "--output", tmp_path / f"{name}.parquet")
        assert status == 3, errors
        assert errors.count("\n") == 1, "a sum, and nothing of Ray's"
        tables.append(parquet.read_table(tmp_path / f"{name}.parquet"))
        assert [json.loads(line) for line in printed.splitlines()] == tables[-1].to_pylist()
    assert tables[0].num_rows == 302
    assert tables[0].equals(tables[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.parquet", "ray.parquet", "slices.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "local", "--workers", "2"), "--engine ray"),
        (("--engine", "local", "--address", "auto"), "--engine ray"),
        (("--threads", "2"), "--threads"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, folder: Path, options: tuple[str, ...], message: str
) -> None:
    status, printed, errors = run(folder / "0.png", *options)
    assert (status, printed, errors.count("\n"), errors[:7]) == (2, "", 1, "error: ")
    assert message in errors


@pytest.mark.slow
@pytest.mark.parametrize("identifiers", [False, True])
def test_the_same_predictions_as_one_process_in_the_order_of_the_files(
    spread: Spread, classifier: Classifier, folder: Path, tmp_path: Path, identifiers: bool
) -> None:
    paths = [folder, tmp_path, folder / "0.png", folder / "notes.txt", tmp_path / "gone.png"]
    expected = list(Classifier(classifier.bundle, keep_identifiers=identifiers).predict_all(paths))
    assert {prediction.status for prediction in expected} == set(Status)
    assert [prediction for prediction in expected if prediction.file == str(tmp_path)], "an empty folder"
    assert spread(paths, None, keep_identifiers=identifiers) == expected
    known = RayClassifier(classifier.bundle, 1, keep_identifiers=identifiers).predict_all(
        paths, skip=lambda file, frame: file.endswith("1.png")
    )
    assert list(known) == [prediction for prediction in expected if not prediction.file.endswith("1.png")]


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(
    two_workers: None, classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 8)
    paths = [folder / "many", folder / "many"]
    found, killed = [], []
    for each in RayClassifier(classifier.bundle, workers=2).predict_all(paths):
        found.append(each)
        if len(found) in {1, 200}:
            killed.append(workers("ray::_classify", "ray::IDLE")[0])
            os.kill(killed[-1], signal.SIGKILL)
    assert len(set(killed)) == 2
    assert found == list(classifier.predict_all(paths))


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_named_and_only_many_of_them_end_the_run(
    spread: Spread, classifier: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 8)
    for number in range(30):
        shutil.copy(folder / f"{number % 10}.png", tmp_path / f"{number}.png")
    expected = list(classifier.predict_all([tmp_path]))
    for name in ("5deadly.png", "6deadly.png", "20faulty.png"):
        shutil.copy(folder / "0.png", tmp_path / name)
    found = spread([tmp_path])
    odd = {Path(each.file).name: each for each in found if each not in expected}
    assert [each for each in found if each in expected] == expected
    assert sorted(odd) == ["20faulty.png", "5deadly.png", "6deadly.png"]
    assert {each.status for each in odd.values()} == {Status.FAILED}
    assert odd["5deadly.png"].reason == "reading it ended its process"
    assert odd["20faulty.png"].reason
    monkeypatch.setattr("groundglass.cluster.ray.MOST_LOST", 1)
    with pytest.raises(PredictionError, match=r"workers died .* memory"):
        spread([tmp_path])


@pytest.mark.slow
def test_a_run_that_is_not_wanted_any_more_ends_and_one_that_is_too_large_never_begins(
    spread: Spread, classifier: Classifier, folder: Path
) -> None:
    predictions = RayClassifier(classifier.bundle, workers=2).predict_all([folder])
    next(predictions)
    predictions.close()
    with pytest.raises(PredictionError, match="--workers 3"):
        spread([folder], 3)
    wait_for(lambda: not workers("ray::_classify"))


@pytest.mark.slow
def test_a_bundle_is_verified_by_the_workers_too_and_may_be_a_zip(
    two_workers: None, tiny_bundle: Path, classifier: Classifier, folder: Path, tmp_path: Path
) -> None:
    paths = [folder / "0.png"]

    def opened(path: Path) -> RayClassifier:
        return RayClassifier(Bundle.open(path, threads=1), workers=1)

    archive = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_bundle))
    assert list(opened(archive).predict_all(paths)) == list(classifier.predict_all(paths))
    changed = opened(Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")))
    (tmp_path / "bundle" / MODEL).write_bytes(b"something else")
    with pytest.raises(PredictionError, match=MODEL):
        list(changed.predict_all(paths))
    shutil.rmtree(tmp_path / "bundle")
    with pytest.raises(PredictionError, match="put the same bundle there"):
        list(changed.predict_all(paths))


def test_nothing_is_listed_before_it_is_asked_for(
    classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path)) or scandir(path))
    units = RayClassifier(classifier.bundle).units([folder / "many", folder / "series"])
    assert len(next(units)) == LARGEST
    assert opened == [folder / "many"]


def test_a_manifest_stands_for_the_files_it_names_line_by_line(
    classifier: Classifier, tmp_path: Path
) -> None:
    units = RayClassifier(classifier.bundle).units
    manifest, named = tmp_path / "manifest.csv", [f"{tmp_path}/{number}.png" for number in range(100_000)]
    manifest.write_text("\n".join(["path", *named, ",broken"]))
    begun = chain.from_iterable(islice(units([manifest], lambda name: not name.endswith("0.png")), 2))
    assert list(begun) == [name for name in named if name.endswith("0.png")][: 2 * LARGEST]
    with pytest.raises(DataError, match="line 100002"):
        list(units([manifest]))


def test_without_ray_one_line_says_how_to_get_it(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PredictionError, match=r"pip install '\.\[cluster\]'"):
        next(RayClassifier(classifier.bundle).predict_all([]))


def child(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python without what the Ray of this process has set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, **pipes, text=True, env={**clean, **environment})


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


@pytest.mark.slow
def test_a_ray_that_cannot_be_kept_to_this_machine_is_not_started() -> None:
    printed, errors = child("import ray\n" + JOIN, "").communicate(timeout=120)
    assert printed.startswith("PredictionError Ray was imported before"), errors


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
# 127.0.0.1, the same as IPv6 has it, and ::1, hexadecimal as the kernel writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="listening sockets are read from /proc")
def test_a_local_ray_listens_to_this_machine_only_and_leaves_nothing(tmp_path: Path) -> None:
    # A folder of its own, with a short path: sockets lie in it, and other tests may have a Ray of theirs in the usual one.
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    started = child(ALONE, HOME=str(tmp_path), TMPDIR=str(temporary))
    try:
        assert started.stdout is not None
        assert [started.stdout.readline() for _ in range(2)] == ['[2, "token"]\n', "ready\n"]
        pids = set(family(started.pid))
        assert any("raylet" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in pids)
        addresses = listening(pids)
        assert addresses, "the sockets were found at all"
        assert addresses <= LOOPBACK
    finally:
        rest, errors = started.communicate(timeout=60)
    assert rest == "done False\n"
    assert [line for line in errors.splitlines() if "Set ray log level" not in line] == []
    assert not list(tmp_path.iterdir()), "no token is left in the home"
    assert not list(temporary.glob("groundglass-*"))
    wait_for(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for one in children.read_text().split():
            yield from family(int(one))


def listening(pids: set[int]) -> set[str]:
    """Addresses of the listening TCP sockets of processes."""
    lines = (
        line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()
    )
    sockets = {f"socket:[{line[9]}]": line[1].partition(":")[0] for line in lines if line[3] == "0A"}
    found = set()
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):
            found.add(sockets.get(os.readlink(link), ""))
    return found - {""}
