import fcntl
import os

import pytest

from coterie.errors import StoreError
from coterie.store import DiskTier, EmulatedTier, MemoryTier, VirtualClock, WallClock
from coterie.store.arena import Arena
from coterie.testing.stores import TIER_CHECKS, write_blobs

ROWS = {
    "disk": lambda files: DiskTier(),
    "buffered": lambda files: DiskTier(direct=False),
    "memory": MemoryTier,
    "emulated": lambda files: EmulatedTier(MemoryTier(files), bandwidth=1e6, latency=0.1, clock=VirtualClock()),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("check", TIER_CHECKS.values(), ids=TIER_CHECKS)
def test_tier_battery(check, row, tmp_path):
    check(row, tmp_path)


def test_direct_reads_are_used_where_there_are_any(tmp_path):
    write_blobs(tmp_path)
    path = tmp_path / "first.bin"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this filesystem has no direct reads")
    assert DiskTier().is_direct(path)
    assert not DiskTier(direct=False).is_direct(path)


def refuse_direct(monkeypatch, name):
    """The function ``os.name`` as a filesystem without direct reads has it."""
    real = getattr(os, name)

    def refusing(target, *rest):
        descriptor_flags = rest[0] if name == "open" else fcntl.fcntl(target, fcntl.F_GETFL)
        if descriptor_flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(target, *rest)

    monkeypatch.setattr(os, name, refusing)


@pytest.mark.parametrize("name", ["open", "preadv"])
def test_falls_back_where_open_or_read_refuse(name, monkeypatch, tmp_path):
    refuse_direct(monkeypatch, name)
    TIER_CHECKS["serves many readers"](lambda files: DiskTier(), tmp_path)
    tier = DiskTier(direct=True)
    _, blobs = write_blobs(tmp_path)
    with pytest.raises(StoreError, match=r"no direct reads.*DiskTier\(\)"):
        tier.read(blobs[0], Arena(1, blobs[0].slot_bytes).view(0))


def test_a_failing_disk_names_the_file(monkeypatch, tmp_path):
    _, blobs = write_blobs(tmp_path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StoreError, match=r"first\.bin cannot be read: Input/output error"):
        DiskTier().read(blobs[0], Arena(1, blobs[0].slot_bytes).view(0))


def test_reads_in_pieces_are_put_together(monkeypatch, tmp_path):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:4096]], at))
    TIER_CHECKS["reads what is there"](lambda files: DiskTier(), tmp_path)


def test_the_end_of_a_file_does_not_end_direct_reads(monkeypatch, tmp_path):
    _, blobs = write_blobs(tmp_path)
    tier, path, real = DiskTier(), tmp_path / "first.bin", os.preadv
    if not tier.is_direct(path):
        pytest.skip("this filesystem has no direct reads")

    def strict(descriptor, views, at):
        if at % 4096:
            raise OSError(22, "Invalid argument")
        return real(descriptor, views, at)

    monkeypatch.setattr(os, "preadv", strict)
    tier.read(blobs[5], Arena(1, blobs[5].slot_bytes).view(0))
    assert tier.is_direct(path)


def test_a_closed_disk_tier_opens_again(tmp_path):
    _, blobs = write_blobs(tmp_path)
    tier, buffer = DiskTier(), Arena(1, blobs[0].slot_bytes).view(0)
    count = tier.read(blobs[0], buffer)
    tier.close()
    tier.close()
    assert tier.read(blobs[0], buffer) == count
    tier.close()


def test_the_emulated_link_carries_one_read_at_a_time(tmp_path):
    files, blobs = write_blobs(tmp_path)
    clock = VirtualClock()
    tier = EmulatedTier(MemoryTier(files), bandwidth=1000.0, latency=2.0, clock=clock)
    buffer = Arena(1, max(blob.slot_bytes for blob in blobs)).view(0)
    first = tier.read(blobs[0], buffer)
    assert clock.now() == pytest.approx(2 + first / 1000)
    clock.sleep_until(1000.0)
    second = tier.read(blobs[1], buffer)
    assert clock.now() == pytest.approx(1002 + second / 1000)


def test_clocks_never_go_back():
    virtual = VirtualClock()
    virtual.sleep_until(5.0)
    virtual.sleep_until(3.0)
    assert virtual.now() == 5.0
    wall = WallClock()
    before = wall.now()
    wall.sleep_until(before - 1)
    assert wall.now() >= before
