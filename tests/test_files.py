"""Files that appear whole, and how many cores there are, by affinity and by the quota of control groups."""

import os
from pathlib import Path

import pytest

from groundglass import files


@pytest.mark.parametrize(
    ("groups", "settings", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),  # rounded up
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "30000 100000"}, 1),
        ("0::/../gone", {"cpu.max": "300000 100000"}, 3),
        ("3:cpu,cpuacct:/x\n0::/", {"cpu/x/cpu.cfs_quota_us": "250000"}, 3),  # the first version of control groups
        ("3:cpu,cpuacct:/docker/x", {"cpu/cpu.cfs_quota_us": "200000"}, 2),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        (None, {}, 8),
    ],
)
def test_cores_follow_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, settings: dict[str, str], cores: int
) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "root"
    if groups is not None:
        proc.write_text(f"{groups}\n")
    for name, text in settings.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
        if name.endswith("quota_us"):
            (root / name).with_name("cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(files._quotas, "__defaults__", (proc, root))
    assert files.usable_cores() == cores


def test_a_file_of_any_name_appears_whole_and_an_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / f"{82 * '切'}.jsonl"
    files.write_text(path, "caf\udce9")
    assert path.read_text() == "caf\\udce9"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), files.atomic_path(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=rf"directory: '\S*{tmp_path.name}'"):
        files.write_text(tmp_path, "x")
    assert list(tmp_path.iterdir()) == [path]
