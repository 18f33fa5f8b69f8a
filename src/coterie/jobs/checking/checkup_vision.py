"""Is this network for images whole? Its config, its tensors, and on request whether its weights are numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from coterie.jobs.checking.checkup_checkpoint import CheckpointCheckup
from coterie.jobs.checking.findings import Finding, ok
from coterie.models.vision import check_vision, load_vision, read_vision

Say = Callable[[str], None]


class VisionCheckup:
    """The checks of one directory with a convolutional network of ours."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self._files = path, CheckpointCheckup(path, say)

    def checks(self, *, checksum: bool, values: bool) -> Mapping[str, Callable[[], Iterable[Finding]]]:
        """Name -> check, in order; ``checksum`` is for what comes from a hub."""
        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "config": self.config, "shards": self._files.shards, "tensors": self.tensors, "disk": self._files.disk,
        }  # fmt: skip
        if values:
            checks["values"] = self.values
        return checks

    def config(self) -> Iterator[Finding]:
        spec = read_vision(self.path)
        kind = f"{spec.experts} experts of {spec.ratio:g} of its channels" if spec.routed else "dense"
        yield ok("config", f"{spec.architecture}, {kind}, a network for images")

    def tensors(self) -> Iterator[Finding]:
        """Whether they are those of the network that the config describes."""
        model = check_vision(self.path)
        yield ok("tensors", f"{len(model.state_dict())}, all of the shapes that config.json asks for")

    def values(self) -> Iterator[Finding]:
        load_vision(self.path)
        yield ok("values", "all weights and statistics are finite numbers")
