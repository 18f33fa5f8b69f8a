"""Equal footing: cold files, one memory limit, arms that take turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from offloading.arms import ARMS, JUDGED, PEER
from offloading.benchmark import alone
from offloading.cold import drop, resident_share
from offloading.facts import file_system
from offloading.memory_limit import NoMemoryGroup, memory_group
from offloading.schedule import Plan
from offloading.worker import Spec


def test_dropped_files_are_cold(tmp_path: Path) -> None:
    if file_system(tmp_path) in ("tmpfs", "ramfs", "overlay"):
        pytest.skip("the temporary folder has no disk below it")
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert resident_share(path) == 1
    drop(path)
    assert resident_share(path) == 0


def fake_groups(root: Path, version: int) -> Path:
    """A control group tree that answers like the kernel's, and a process's membership in it."""
    membership = root / "membership"
    if version == 1:
        (root / "memory" / "mine").mkdir(parents=True)
        (root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
        membership.write_text("4:memory:/mine\n0::/\n")
    elif version == 2:
        (root / "mine").mkdir()
        (root / "mine" / "cgroup.controllers").write_text("cpu memory")
        (root / "mine" / "cgroup.subtree_control").write_text("cpu")
        membership.write_text("0::/mine\n")
    else:
        membership.write_text("0::/\n")
    return membership


@pytest.mark.parametrize(
    ("version", "parent", "name"), [(1, "memory/mine", "memory.limit_in_bytes"), (2, "mine", "memory.max")]
)
def test_a_memory_group_of_either_version(tmp_path: Path, version: int, parent: str, name: str) -> None:
    membership = fake_groups(tmp_path, version)
    with memory_group(12345, tmp_path, membership) as group:
        assert group.version == version
        assert group.path.parent == tmp_path / parent
        assert (group.path / name).read_text() == "12345"


def test_without_control_groups_it_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(NoMemoryGroup, match=r"Run as root .* --no-limit"),
        memory_group(1, tmp_path, fake_groups(tmp_path, 0)),
    ):
        pass


def test_arms_take_turns_at_being_first() -> None:
    spec = Spec("", "", "small", "", "", "", 0, 0, 1, 1, 0)
    plan = Plan(spec, (PEER, JUDGED, "accelerate"), ("uniform",), 3, 0, Path())
    runs = list(plan.runs())
    assert len({arm for _, _, arm in (runs[0], *(r for n, r in enumerate(runs) if r[0] != runs[n - 1][0]))}) > 1
    assert [arm for _, _, arm in runs].count(JUDGED) == 3
    assert [arm for _, _, arm in runs].count("accelerate") == ARMS["accelerate"].repeats


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(RuntimeError, match="Another benchmark is running"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
