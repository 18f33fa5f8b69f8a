"""What the machine is said to be, from files that other machines have."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.errors import StoreError
from coterie.store import machine, place, processor
from coterie.store.machine import memory_limit, page_cache, swap_memory
from coterie.store.place import place_of, reads_directly
from coterie.store.processor import Processor

X86 = "processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nflags\t: none\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\n"


@pytest.fixture
def system(monkeypatch):
    """``system({path: text})`` shows the processor module these files and no others."""

    def show(files):
        monkeypatch.setattr(processor, "_read", lambda path: files.get(str(path), ""))
        return processor.processor()

    return show


def test_this_machine_is_told():
    found = processor.processor()
    assert 1 <= found.usable <= found.affinity <= found.cores
    assert page_cache() > 0
    total, used = swap_memory()
    assert 0 <= used <= total


def test_features_by_their_usual_names(system):
    found = system({"/proc/cpuinfo": X86})
    assert (found.name, found.features) == ("Fast 9000", ("AVX2", "AVX512", "AVX512_BF16"))
    assert found.has_vectors
    assert found.has_bfloat16
    found = system({"/proc/cpuinfo": ARM})
    assert found.features == ("NEON", "SVE", "BF16")
    assert found.has_bfloat16
    assert not system({}).has_vectors


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/proc/self/cgroup": "0::/box\n", "/sys/fs/cgroup/box/cpu.max": "150000 100000\n"}, 1.5),
        ({"/proc/self/cgroup": "0::/box\n", "/sys/fs/cgroup/box/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4.0),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/box\n2:memory:/box\n",
                "/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu:/box\n",
                "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_a_quota_of_either_kind_of_cgroup(files, quota, system):
    assert system(files).quota == quota


def test_a_share_of_a_core_is_a_thread():
    assert Processor("x", (), 8, 8, 0.5).usable == 1
    assert Processor("x", (), 8, 8, 2.9).usable == 2
    assert Processor("x", (), 8, 4, None).usable == 4


def test_the_memory_limit_is_the_least(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/box\n",
        "/sys/fs/cgroup/box/memory.max": "1000\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(str(path), "").split("\n")[:-1])
    assert memory_limit() == 1000
    files["/sys/fs/cgroup/box/memory.max"] = "max\n"
    assert memory_limit() is None


def test_the_file_system_of_a_directory(tmp_path):
    found = place_of(tmp_path)
    assert 0 < found.free <= found.size
    assert found.kind != "unknown"
    with pytest.raises(OSError, match="nowhere"):
        place_of(tmp_path / "nowhere")


def test_the_nearest_mount_counts(monkeypatch):
    mounts = "a / ext4 rw 0 0\nb /data nfs4 rw 0 0\nc /data/a\\040b tmpfs rw 0 0\nd /database xfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self: mounts)
    kinds = [place._kind(Path(name)) for name in ("/home", "/data/x", "/data/a b/x", "/database/x")]
    assert kinds == ["ext4", "nfs4", "tmpfs", "xfs"]
    assert place.Place("nfs4", 0, 0).is_network
    assert place.Place("tmpfs", 0, 0).is_memory


def test_direct_reads_are_told(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    assert reads_directly(file) in (True, False)
    with pytest.raises(StoreError, match="gone"):
        reads_directly(tmp_path / "gone")
