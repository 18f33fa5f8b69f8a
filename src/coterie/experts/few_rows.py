"""Products of a few rows with matrices at the speed of memory: a small C kernel that the machine compiles itself.

One row times a matrix reads the matrix once and computes next to nothing; the libraries below torch are
built for many rows and reach half the speed of memory there, or less. `few_rows.c` is compiled with the
machine's own C compiler when it is first wanted, into a folder that is gone again afterwards. Without a
compiler torch's products serve: slower, and with other bits, so that a machine either has a kernel or not.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["Compile", "few_rows", "has_few", "kernel_problem", "wants_kernel"]

Compile = bool | Literal["auto"]

MOST_ROWS = {torch.float32: 8, torch.bfloat16: 4}
"""With more rows of a dtype torch's products are as fast."""

AUTO_BYTES = 32 * 1024**2
"""What a token must read for ``"auto"``: less is computed in a millisecond either way."""

_SOURCE = Path(__file__).with_name("few_rows.c")
_FLAGS = ("-O2", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_BYTES_PER_THREAD = 64 * 1024  # less is not worth waking another
_PLAIN = (Tensor, torch.nn.Parameter)  # what has its numbers at `data_ptr`; subclasses may not

_log = logging.getLogger("coterie")
_lock = threading.Lock()
_made: _Kernel | str | None = None  # the kernel, or why there is none; None before the first question


def wants_kernel(choice: Compile, bytes_per_token: int) -> bool:
    """Whether to compute with the kernel. Compiles it where the answer is yes: blocks for a second or two, once.

    The answer depends on the choice, the model and the machine alone, never on a budget: bits follow from it.
    Where the kernel is wanted and cannot be made, the log says so once, and the answer is no.

    Args:
        choice: True, False, or "auto": yes where ``bytes_per_token`` is `AUTO_BYTES` or more.
        bytes_per_token: weights that one token reads.

    Raises:
        OptionError: another choice.
    """
    if choice not in (True, False, "auto"):
        raise OptionError(f"compile must be True, False or 'auto', found {choice!r}.")
    if choice is False or (choice == "auto" and bytes_per_token < AUTO_BYTES):
        return False
    return not kernel_problem()


def kernel_problem() -> str:
    """Why this machine has no kernel; empty where it has one. Compiles it at the first call; thread-safe."""
    global _made
    with _lock:
        if _made is None:
            _made = _make()
            if isinstance(_made, str):
                _log.warning("%s One token at a time will take up to twice as long.", _made)
        return _made if isinstance(_made, str) else ""


def has_few(x: Tensor, weights: Iterable[Tensor], rows: int | None = None) -> bool:
    """Whether `few_rows` multiplies the rows ``x [n, I]`` with such matrices and adds such biases.

    It wants at most `MOST_ROWS` per matrix (``rows``, by default n) in float32 or bfloat16, in a processor's memory,
    weights without gaps in the same dtype (or bfloat16 for float32 rows), and nothing that autograd or a compiler
    records.
    """
    rows = x.shape[0] if rows is None else rows
    if not 1 <= rows <= MOST_ROWS.get(x.dtype, 0) or type(x) not in _PLAIN or x.device.type != "cpu":
        return False
    recording = torch.is_grad_enabled()
    if (recording and x.requires_grad) or torch.compiler.is_compiling() or kernel_problem():
        return False
    return len({w.dtype for w in weights}) == 1 and all(_is_read(w, x.dtype, recording) for w in weights)


def few_rows(
    x: Tensor,
    matrices: Tensor,
    biases: Tensor | None = None,
    *,
    transposed: bool = False,
    groups: Sequence[int] = (0,),
    starts: Sequence[int] = (),
) -> Tensor:
    """``x [S, I]`` times matrices, a group of rows with each: [S, O] in the dtype of ``x``. For what `has_few` allows.

    Sums are taken in float32 and in one order: the bits of a row do not depend on addresses, on threads, or on
    what else is in the call.

    Args:
        matrices: [O, I], or [I, O] where ``transposed``; or a stack [E, ...] of them.
        biases: [O], or a stack [E, O].
        groups: which of the stack each group takes.
        starts: group g has the rows ``starts[g] .. starts[g + 1]``; by default the one group has all.
    """
    kernel = _made
    assert isinstance(kernel, _Kernel), kernel
    y = torch.empty(x.shape[0], matrices.shape[-1 if transposed else -2], dtype=x.dtype)
    kernel(x.contiguous(), y, matrices, biases, groups, starts or (0, x.shape[0]), transposed)
    return y


def _is_read(weight: Tensor, dtype: torch.dtype, recording: bool) -> bool:
    fits = weight.dtype == dtype or (dtype == torch.float32 and weight.dtype == torch.bfloat16)
    plain = type(weight) in _PLAIN and weight.is_contiguous() and weight.device.type == "cpu"
    return fits and plain and not (recording and weight.requires_grad)


class _Kernel:
    """The compiled function. Thread-safe; lets other Python threads run meanwhile."""

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        matrices: Tensor,
        biases: Tensor | None,
        groups: Sequence[int],
        starts: Sequence[int],
        transposed: bool,
    ) -> None:
        count, inputs, outputs = len(groups), x.shape[1], y.shape[1]
        nbytes = inputs * outputs * matrices.element_size()
        threads = min(torch.get_num_threads(), 1 + count * nbytes // _BYTES_PER_THREAD)
        failed = self._function(
            _addresses(matrices, nbytes, groups),
            None if biases is None else _addresses(biases, outputs * biases.element_size(), groups),
            (ctypes.c_int64 * (count + 1))(*starts), count, x.data_ptr(), y.data_ptr(), outputs, inputs, threads,
            matrices.dtype == torch.bfloat16, x.dtype == torch.bfloat16, transposed,
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for a copy of {x.shape[0]} rows of {inputs}")


def _addresses(stack: Tensor, nbytes: int, groups: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    base = stack.data_ptr()
    return (ctypes.c_void_p * len(groups))(*[base + group * nbytes for group in groups])


def _make() -> _Kernel | str:
    """Compile, load and try the kernel, or say what is in the way."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "There is no C compiler: install gcc or clang, or name one in the environment variable CC."
    try:
        with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
            library = Path(folder) / "few_rows.so"
            _compile(shlex.split(compiler), library)
            kernel = _Kernel(_function(library))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"The C compiler {compiler!r} did not make the kernel: {said.strip().splitlines()[-1:] or said!r}."
    return kernel if _is_right(kernel) else f"What the C compiler {compiler!r} made computes wrong results."


def _compile(compiler: list[str], library: Path) -> None:
    command = [*compiler, *_FLAGS, "-o", str(library), str(_SOURCE)]
    subprocess.run([*command, "-march=native"], check=True, capture_output=True, text=True, timeout=300)


def _function(library: Path) -> Callable[..., int]:
    function = ctypes.CDLL(str(library)).products
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function.argtypes = [pointer, pointer, pointer, number, pointer, pointer, number, number, *[flag] * 4]
    function.restype = ctypes.c_int
    return function


def _is_right(kernel: _Kernel) -> bool:
    """Whether a product of every kind is torch's: what a compiler got wrong must not be noticed by the answers."""
    draw = torch.Generator().manual_seed(0)
    for x_dtype, dtype in ((torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2):
        x = torch.randn(7, 45, generator=draw).to(x_dtype)
        matrices = torch.randn(2, 37, 45, generator=draw).to(dtype)
        wanted = torch.cat([x[:1].double() @ matrices[1].double().t(), x[1:].double() @ matrices[0].double().t()])
        for turned in (False, True):
            given, y = matrices.mT.contiguous() if turned else matrices, x.new_empty(7, 37)
            kernel(x, y, given, None, (1, 0), (0, 1, 7), turned)
            if not torch.allclose(y.double(), wanted, rtol=2 * torch.finfo(x_dtype).eps, atol=1e-4):
                return False
    return True
