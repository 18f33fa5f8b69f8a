"""What the machine can do, measured in the same run: bytes per second from memory, products per second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from coterie.experts import few_rows, wants_kernel
from layers.shapes import LayerShape

_BYTES = 512 * 1024**2
_SIDE = 2048
_TRIES = 5


@dataclass(frozen=True)
class Limits:
    """Best of some tries, with the threads torch has.

    Attributes:
        bandwidth: bytes per second, reading.
        flops: per second, of square products in the dtype.
    """

    bandwidth: float
    flops: float

    def seconds(self, shape: LayerShape, dtype: torch.dtype, tokens: int, backward: bool) -> float:
        """No implementation can be faster: the larger of bytes over bandwidth and operations over peak.

        Forward reads the weights of the experts that are hit. Backward reads them again and writes a gradient
        for every expert, hit or not, since optimisers want one.
        """
        expert = shape.expert_parameters * dtype.itemsize
        read = expert * shape.hit(tokens) * (2 if backward else 1)
        written = expert * shape.experts if backward else 0
        flops = 2 * shape.expert_parameters * shape.top_k * tokens * (3 if backward else 1)
        return max((read + written) / self.bandwidth, flops / self.flops)


@torch.no_grad()
def measure(dtype: torch.dtype) -> Limits:
    """Blocks for a second or two."""
    columns = 4096
    # written, since pages of zeros that nobody has written are one page
    matrix = torch.ones(_BYTES // dtype.itemsize // columns, columns, dtype=dtype)
    row, square = torch.ones(1, columns, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype)
    readers = [lambda: matrix.sum(), lambda: row @ matrix.t()]
    if wants_kernel(True, 0):
        readers.append(lambda: few_rows(row, matrix))
    fastest = min(_seconds(read) for read in readers)
    return Limits(_BYTES / fastest, 2 * _SIDE**3 / _seconds(lambda: square @ square))


def _seconds(run: object) -> float:
    assert callable(run)
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
