"""How many cores there are, by affinity and by the quota of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from groundglass import files


def first_version(folder: str, quota: int, period: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("groups", "settings", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),  # rounded up
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "30000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 8),  # no more than there are
        ("0::/../gone\n", {"cpu.max": "300000 100000"}, 3),
        ("3:cpu,cpuacct:/x\n0::/\n", first_version("cpu/x", 250_000, 100_000), 3),
        ("3:cpu,cpuacct:/docker/x\n", first_version("cpu", 100_000, 50_000), 2),
        ("3:cpu:/\n", first_version("cpu", -1, 100_000), 8),
        ("5:memory:/x\n", {"x/cpu.max": "100000 100000"}, 8),
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        (None, {}, 8),
    ],
)
def test_cores_follow_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, settings: dict[str, str], cores: int
) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "root"
    if groups is not None:
        proc.write_text(groups)
    for name, text in settings.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(files._quotas, "__defaults__", (proc, root))
    assert files.usable_cores() == cores
