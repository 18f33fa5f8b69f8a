"""Few numbers of rows for kernels that are compiled per number of rows.

oneDNN, which multiplies bfloat16 and float16 matrices on CPUs, compiles and keeps a kernel for every
number of rows it meets: about 0.6 MiB of memory and some milliseconds each, up to a thousand of them.
A prefill sends every expert another number of rows, so without this the kernels of a small model soon
take more memory than its experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
_STEP = 64


def bucketed(x: Tensor) -> Tensor:
    """``x`` [n, D] with rows of zeros up to the next bucket: a power of two, from 64 on a multiple of 64.

    Returns ``x`` itself where nothing is compiled per number of rows: other dtypes and devices, and where
    autograd records: training has `one_by_one`, with buckets of its own.
    """
    recorded = torch.is_grad_enabled() and x.requires_grad
    if x.dtype not in HALVES or x.device.type != "cpu" or recorded or x.shape[0] < 3:
        return x
    rows = x.shape[0]
    bucket = 1 << (rows - 1).bit_length() if rows < _STEP else -(-rows // _STEP) * _STEP
    return F.pad(x, (0, 0, 0, bucket - rows)) if bucket > rows else x
