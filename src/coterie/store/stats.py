"""What the store counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coterie.units import format_bytes


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class LayerStats:
    """One layer's uses of experts. Every use is a hit, late or a miss.

    Attributes:
        hits: resident when asked for.
        late: already on their way when asked for, by a hint or another lease.
        misses: read because they were asked for.
        stall_seconds: time consumers waited for this layer's experts.
    """

    hits: int = 0
    late: int = 0
    misses: int = 0
    stall_seconds: float = 0.0

    @property
    def uses(self) -> int:
        return self.hits + self.late + self.misses

    @property
    def hit_rate(self) -> float:
        """Uses that did not wait, of all; 0 before the first."""
        return _ratio(self.hits, self.uses)


@dataclass(frozen=True)
class StoreStats(LayerStats):
    """The whole store since it was made or reset.

    Attributes:
        prefetches: reads begun by a hint.
        useful: prefetched experts that came to be used.
        demand_bytes, prefetch_bytes: read, alignment included.
        evictions: experts dropped for others.
        failed: reads that raised.
        read_seconds: time readers spent in the tier, summed over readers.
        layers: layer -> its own figures.
    """

    prefetches: int = 0
    useful: int = 0
    demand_bytes: int = 0
    prefetch_bytes: int = 0
    evictions: int = 0
    failed: int = 0
    read_seconds: float = 0.0
    layers: Mapping[int, LayerStats] = field(default_factory=dict)

    @property
    def bytes_read(self) -> int:
        return self.demand_bytes + self.prefetch_bytes

    @property
    def bandwidth(self) -> float:
        """Bytes per second inside the tier; 0 before the first read."""
        return _ratio(self.bytes_read, self.read_seconds)

    def describe(self) -> str:
        """One paragraph for people."""
        return (
            f"experts used {self.uses}: {self.hit_rate:.1%} resident, {self.late} late, {self.misses} missed\n"
            f"read {format_bytes(self.bytes_read)} at {format_bytes(self.bandwidth)}/s, waited "
            f"{self.stall_seconds:.2f} s; read ahead {self.prefetches}, {self.useful} of them used"
        )


@dataclass(slots=True)
class LayerCounters:
    """`LayerStats` while they grow."""

    hits: int = 0
    late: int = 0
    misses: int = 0
    stall_seconds: float = 0.0

    def freeze(self) -> LayerStats:
        return LayerStats(self.hits, self.late, self.misses, self.stall_seconds)


class Counters:
    """`StoreStats` while they grow. Not thread-safe.

    Args:
        evictions: what the table had evicted when counting began.
    """

    def __init__(self, evictions: int = 0) -> None:
        self.prefetches = self.useful = self.demand_bytes = self.prefetch_bytes = self.failed = 0
        self.read_seconds = 0.0
        self._evictions = evictions
        self._layers: dict[int, LayerCounters] = {}

    def layer(self, layer: int) -> LayerCounters:
        """The layer's own counters, to be added to."""
        if layer not in self._layers:
            self._layers[layer] = LayerCounters()
        return self._layers[layer]

    def add_read(self, prefetch: bool, count: int, seconds: float) -> None:
        """A read has ended well."""
        self.read_seconds += seconds
        if prefetch:
            self.prefetch_bytes += count
        else:
            self.demand_bytes += count

    def freeze(self, evictions: int) -> StoreStats:
        """The figures so far; ``evictions`` is the table's own count."""
        layers = {layer: row.freeze() for layer, row in sorted(self._layers.items())}
        return StoreStats(
            hits=sum(row.hits for row in layers.values()),
            late=sum(row.late for row in layers.values()),
            misses=sum(row.misses for row in layers.values()),
            stall_seconds=sum(row.stall_seconds for row in layers.values()),
            prefetches=self.prefetches,
            useful=self.useful,
            demand_bytes=self.demand_bytes,
            prefetch_bytes=self.prefetch_bytes,
            evictions=evictions - self._evictions,
            failed=self.failed,
            read_seconds=self.read_seconds,
            layers=layers,
        )
