"""The folder that uploads lie in: private, bounded, gone in the end."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from groundglass.serving.jobs import UploadDirectory
from groundglass.serving.schemas import Problem


def test_a_folder_is_private_and_gone_in_the_end(tmp_path: Path) -> None:
    with UploadDirectory(tmp_path, 100) as scratch:
        with scratch.request() as folder:
            folder.open("a").close()
            assert (
                stat.S_IMODE(folder.path.stat().st_mode) == stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
            )
        assert list(scratch.path.iterdir()) == []
        with pytest.raises(Problem), scratch.request() as folder:
            folder.reserve(101)
        assert list(scratch.path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    with UploadDirectory(tmp_path, 100) as scratch, scratch.request() as folder:
        folder.reserve(50)
        assert list(scratch.path.iterdir()) == []
        folder.open("a").close()
        assert list(scratch.path.iterdir()) == [folder.path]


def test_requests_in_flight_share_their_room(tmp_path: Path) -> None:
    with UploadDirectory(tmp_path, 100) as scratch, scratch.request() as first:
        first.reserve(60)
        with scratch.request() as second:
            second.reserve(40)
            with pytest.raises(Problem) as refused:
                second.reserve(1)
            assert refused.value.status == 503
            assert int(refused.value.headers["Retry-After"]) > 0
        with scratch.request() as third:
            third.reserve(40)
        assert scratch.used == 60
    assert scratch.used == 0


def test_what_is_not_the_services_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "groundglass-serve-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "groundglass-serve-new").mkdir()
    with UploadDirectory(tmp_path, 100):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "groundglass-serve-link",
        "groundglass-serve-new",
    ]
