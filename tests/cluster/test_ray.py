"""Many workers say what one process says, whatever happens to them; their Ray is quiet, alone and gone afterwards."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from tests.conftest import Command, Patch, make_zip, wait_for

from groundglass.cluster.ray import LARGEST, RayClassifier, ray_session
from groundglass.errors import DataError, PredictionError
from groundglass.imaging.phantom import make_phantom, write_dicom
from groundglass.inference.bundle import MODEL, Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Prediction, Status

# Not imported here: Ray must be told to keep to this machine before it is.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
Spread = Callable[..., list[Prediction]]
DEADLY = """
import os
import groundglass.imaging.raster as raster
read = raster.read_raster
def changed(source, *rest):
    if source.name.endswith("deadly.png"):
        os.kill(os.getpid(), 9)
    return 1 / 0 if source.name.endswith("faulty.png") else read(source, *rest)
raster.read_raster = changed
"""
ALONE = """
import json, os, sys
from groundglass.cluster.ray import ray_session
with ray_session(None, 2) as workers:
    import ray
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    print(json.dumps([workers, os.environ.get("RAY_AUTH_MODE")]), flush=True)
    sys.stdin.read()
print("done", "RAY_AUTH_MODE" in os.environ, flush=True)
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
    make_zip(folder / "study.zip", {f"inside/{name}": (folder / name).read_bytes() for name in ("0.png", "3b.png")})
    return folder


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray in whose workers some files kill their reader."""
    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(DEADLY)
    with ExitStack() as running:
        # Ray's processes keep what they start with; the tests that come after must not.
        with Patch.context() as patch:
            patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
            running.enter_context(ray_session(None, 2))
        yield


@pytest.fixture
def spread(two_workers: None, classifier: Classifier) -> Spread:
    """What two workers say of paths."""
    return lambda paths, workers=2, bundle=classifier.bundle, skip=lambda *_: False, **options: list(
        RayClassifier(bundle, workers, **options).predict_all(paths, skip=skip)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_rows_of_a_manifest(run_command: Command, tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    manifest = tmp_path / "slices.csv"
    names = "".join(f"{path}\n" for path in [*sorted((folder / "many").iterdir()), folder / "3b.png"])
    cv2.imwrite(str(tmp_path / "deep.png"), cv2.imread(str(folder / "0.png"), 0).astype(np.uint16) * 16)
    manifest.write_text(f"path,unit\n{names}gone.png\ndeep.png,grey/8191\n")
    tables = []
    for name, options in (("ray", ("--workers", 2)), ("local", ())):
        words = ("predict", manifest, "--bundle", tiny_bundle, "--engine", name, *options, "--json")
        status, printed, errors = run_command(*words, "--output", tmp_path / f"{name}.parquet")
        assert (status, errors.count("\n")) == (3, 1), f"not a sum alone: {errors}"
        tables.append(parquet.read_table(tmp_path / f"{name}.parquet"))
        assert [json.loads(line) for line in printed.splitlines()] == tables[-1].to_pylist()
    assert tables[0].num_rows == 303
    assert tables[0].equals(tables[1]), "as one process writes them"
    assert {path.name for path in tmp_path.iterdir()} == {"deep.png", "local.parquet", "ray.parquet", "slices.csv"}


@pytest.mark.slow
def test_in_order(spread: Spread, classifier: Classifier, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Predictions are those of one process, with identifiers; relative paths lead to where they lead here."""
    monkeypatch.chdir(folder)
    paths = [folder, tmp_path, Path("0.png"), folder / "notes.txt", tmp_path / "gone.png"]
    expected = list(Classifier(classifier.bundle, keep_identifiers=True).predict_all(paths))
    assert {prediction.status for prediction in expected} == set(Status)
    assert [prediction for prediction in expected if prediction.file == str(tmp_path)], "an empty folder"
    assert spread(paths, None, keep_identifiers=True) == expected
    known = spread(paths, 1, skip=lambda file, frame: file.endswith("1.png"), keep_identifiers=True)
    assert known == [prediction for prediction in expected if not prediction.file.endswith("1.png")]


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_named(
    spread: Spread, classifier: Classifier, folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """And only many of them end the run."""
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 8)
    for number in range(30):
        shutil.copy(folder / f"{number % 10}.png", tmp_path / f"{number}.png")
    expected = list(classifier.predict_all([tmp_path]))
    for name in ("5deadly.png", "6deadly.png", "20faulty.png"):
        shutil.copy(folder / "0.png", tmp_path / name)
    found = spread([tmp_path])
    assert [each for each in found if each in expected] == expected
    odd = {Path(each.file).name: (each.status, each.reason) for each in found if each not in expected}
    (_, fault), ended = odd.pop("20faulty.png"), (Status.FAILED, "reading it ended its process")
    assert fault
    assert odd == dict.fromkeys(("5deadly.png", "6deadly.png"), ended)
    monkeypatch.setattr("groundglass.cluster.ray.MOST_LOST", 1)
    with pytest.raises(PredictionError, match=r"workers died .* memory"):
        spread([tmp_path])


@pytest.mark.slow
def test_a_run_ends_where_nobody_wants_it_or_is_too_large(spread: Spread, folder: Path, classifier: Classifier) -> None:
    predictions = RayClassifier(classifier.bundle, workers=2).predict_all([folder])
    next(predictions)
    predictions.close()
    with pytest.raises(PredictionError, match="--workers 3"):
        spread([folder], 3)

    def is_classifying() -> bool:
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # of children that end meanwhile
                if "".join(each.cmdline()).startswith("ray::_classify"):
                    return True
        return False

    wait_for(lambda: not is_classifying())


@pytest.mark.slow
def test_workers_verify_the_bundle(spread: Spread, classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    """Which may be a zip."""
    paths, own = [folder / "0.png"], classifier.bundle.path
    archive = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", own))
    assert spread(paths, 1, Bundle.open(archive, threads=1)) == list(classifier.predict_all(paths))
    copy = Path(shutil.copytree(own, tmp_path / "bundle"))
    opened = Bundle.open(copy, threads=1)
    (copy / MODEL).write_bytes(b"something else")
    with pytest.raises(PredictionError, match=MODEL):
        spread(paths, 1, opened)
    shutil.rmtree(copy)
    with pytest.raises(PredictionError, match="put the same bundle there"):
        spread(paths, 1, opened)


def test_listed_as_needed(classifier: Classifier, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Folders and manifests, not whole before the first slice is classified."""
    opened: list[Path] = []
    scandir, units = os.scandir, RayClassifier(classifier.bundle).units
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path)) or scandir(path))
    assert len(next(units([folder / "many", folder / "series"]))) == LARGEST
    assert opened == [folder / "many"]
    manifest, named = tmp_path / "manifest.csv", [f"{tmp_path}/{number}.png" for number in range(100_000)]
    manifest.write_text("\n".join(["path", *named, ",broken"]))
    begun = chain.from_iterable(islice(units([manifest], lambda name, _: not name.endswith("0.png")), 2))
    assert list(begun) == [name for name in named if name.endswith("0.png")][: 2 * LARGEST]
    with pytest.raises(DataError, match="line 100002"):
        list(units([manifest]))


def test_without_ray_one_line_says_how_to_get_it(classifier: Classifier, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PredictionError, match=r"pip install '\.\[cluster\]'"):
        next(RayClassifier(classifier.bundle).predict_all([]))


@pytest.mark.slow
def test_a_local_ray_listens_to_this_machine_only(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # A folder of its own, with a short path: sockets lie in it, and other tests may have a Ray of theirs in the usual one.
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(temporary, ignore_errors=True))
    # A Python without what the Ray of this process has set.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {**clean, "HOME": str(tmp_path), "TMPDIR": str(temporary)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = subprocess.Popen([sys.executable, "-c", ALONE], **pipes, text=True, env=own)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == '[2, "token"]\n'
        processes = [(parent := psutil.Process(started.pid)), *parent.children(recursive=True)]
        assert "raylet" in {process.name() for process in processes}
        sockets = [socket for process in processes for socket in process.net_connections("inet")]
        addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert addresses, "the sockets were found at all"
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    finally:
        rest, errors = started.communicate(timeout=60)
    assert rest == "done False\n"
    assert [line for line in errors.splitlines() if "Set ray log level" not in line] == []
    assert not list(tmp_path.iterdir()), "no token is left in the home"
    assert not list(temporary.glob("groundglass-*"))
    assert psutil.wait_procs(processes, timeout=60)[1] == []
