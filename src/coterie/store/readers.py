"""The threads that read experts into slots."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import perf_counter

from coterie.errors import OptionError, StoreError
from coterie.store.arena import Arena
from coterie.store.blob import Blob, Key
from coterie.store.desk import Desk
from coterie.store.tiers import Tier


def start_readers(
    count: int, desk: Desk, tier: Tier, arena: Arena, blobs: Mapping[Key, Blob]
) -> tuple[threading.Thread, ...]:
    """Start ``count`` daemon threads that read what ``desk`` asks for until it is shut.

    Raises:
        OptionError: fewer than one.
    """
    if count < 1:
        raise OptionError(f"A store needs at least one reader, asked for {count}.")
    threads = tuple(
        threading.Thread(target=_serve, args=(desk, tier, arena, blobs), name=f"coterie-reader-{number}", daemon=True)
        for number in range(count)
    )
    for thread in threads:
        thread.start()
    return threads


def _serve(desk: Desk, tier: Tier, arena: Arena, blobs: Mapping[Key, Blob]) -> None:
    while (read := desk.next_read()) is not None:
        blob, buffer, begin = blobs[read.key], arena.view(read.slot), perf_counter()
        try:
            count = tier.read(blob, buffer)
            seconds = perf_counter() - begin
            value = blob.tensors(buffer)
        except StoreError as error:
            desk.failed(read, error)
        except Exception as error:  # a reader never dies: what went wrong belongs to who waits
            desk.failed(
                read, StoreError(f"{read.key} could not be read: {error!r}. Check the disk and the checkpoint.")
            )
        else:
            desk.landed(read, value, count, seconds)
            del value  # the table alone keeps it
