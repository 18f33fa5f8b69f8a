"""Is this machine fit to run a model? Software first, then processor, memory and disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from coterie.experts import kernel_problem
from coterie.jobs.checking.findings import Finding, ok, problem, warning
from coterie.store.machine import available_memory, machine_memory, memory_limit, page_cache, swap_memory
from coterie.store.place import place_of
from coterie.store.processor import Processor, processor
from coterie.units import format_bytes

_NOT_SERVED = 4
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_FILES = 256  # descriptors a run needs: shards, libraries, pipes
_SMALL = 1024**3


def machine_checks() -> Mapping[str, Callable[[], Iterable[Finding]]]:
    """Name -> check, in order."""
    return {
        "python": check_python, "libraries": check_libraries, "extras": check_extras, "compiler": check_compiler,
        "processor": check_processor, "threads": check_threads, "load": check_load, "memory": check_memory,
        "swap": check_swap, "page cache": check_page_cache, "limits": check_limits, "accelerators": check_accelerators,
        "hub": check_hub,
    }  # fmt: skip


def check_python() -> Iterable[Finding]:
    from importlib.metadata import metadata

    from packaging.specifiers import SpecifierSet

    found = platform.python_version()
    asked = metadata("coterie")["Requires-Python"]
    text = f"{found}, {asked} is asked for"
    if SpecifierSet(asked).contains(found, prereleases=True):
        return [ok("python", text)]
    return [problem("python", text, "make a virtual environment with a Python in that range", _NOT_SERVED)]


def check_libraries() -> Iterable[Finding]:
    from packaging.requirements import Requirement

    good, bad = [], []
    for text in requires("coterie") or []:
        wanted = Requirement(text)
        if wanted.marker is not None:  # of an extra
            continue
        found = _version(wanted.name)
        if found is not None and wanted.specifier.contains(found, prereleases=True):
            good.append(f"{wanted.name} {found}")
        else:
            bad.append((str(wanted), f"{wanted.name} {found or 'is not installed'}, {wanted.specifier} is asked for"))
    if bad:
        install = " ".join(f"'{wanted}'" for wanted, _ in bad)
        yield problem("libraries", "; ".join(text for _, text in bad), f"pip install {install}", _NOT_SERVED)
    else:
        yield ok("libraries", ", ".join(good))


def check_extras() -> Iterable[Finding]:
    from packaging.requirements import Requirement

    state: dict[str, bool] = {}
    for text in requires("coterie") or []:
        wanted = Requirement(text)
        if wanted.marker is None or "extra" not in str(wanted.marker):
            continue
        extra = str(wanted.marker).rpartition("==")[2].strip(" \"'")
        state[extra] = state.get(extra, True) and _version(wanted.name) is not None
    there = [name for name, whole in state.items() if whole]
    absent = [name for name, whole in state.items() if not whole]
    text = f"installed: {', '.join(there) or 'none'}"
    yield ok("extras", text + (f"; not installed: {', '.join(absent)}" if absent else ""))


def check_compiler() -> Iterable[Finding]:
    """Whether the kernel for single tokens can be made, and what torch.compile would find."""
    if reason := kernel_problem():
        yield warning("compiler", f"{reason} Single tokens take up to twice as long.", "apt install gcc libc6-dev")
    else:
        yield ok("compiler", "the kernel for single tokens compiles, and computes what torch does")
    yield from _check_cpp()


def _check_cpp() -> Iterable[Finding]:
    """What torch.compile takes on Linux: CXX, else g++; and Python's headers."""
    name, check = os.environ.get("CXX") or "g++", "torch.compile"
    path, unused = shutil.which(name), "Coterie itself does without"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if path is None:
        yield ok(check, f"would lack a C++ compiler ({name}); {unused}")
    elif not header.is_file():
        yield ok(check, f"would lack Python's headers beside {path}; {unused}")
    else:
        yield ok(check, f"would find {path}: {_first_line([path, '--version'])}")


def check_processor() -> Iterable[Finding]:
    found = processor()
    text = f"{found.name}: {', '.join(found.features) or 'no vector units that are known'}"
    if not found.has_vectors:
        yield warning("processor", text, "products will be slow: choose a machine with AVX2 or NEON")
    elif not found.has_bfloat16:
        yield ok("processor", f"{text}; bfloat16 is widened before it is multiplied")
    else:
        yield ok("processor", text)


def check_threads() -> Iterable[Finding]:
    found, threads = processor(), torch.get_num_threads()
    set_by = [f"{name}={os.environ[name]}" for name in _THREADS if os.environ.get(name)]
    text = f"torch uses {threads} of {_cores(found)}" + (f"; {', '.join(set_by)}" if set_by else "")
    broken = [one for one in set_by if not one.partition("=")[2].replace(",", "").strip().isdigit()]
    if broken:
        yield warning("threads", f"{', '.join(broken)} is no number", "unset it, or set it to a number of threads")
    elif threads > found.usable:
        remedy = f"export OMP_NUM_THREADS={found.usable}: threads that wait for a core slow each product down"
        yield warning("threads", text, remedy)
    elif threads < found.usable and set_by:
        yield warning("threads", text, f"unset {set_by[0].partition('=')[0]} to use {found.usable}")
    else:
        yield ok("threads", text)


def check_load() -> Iterable[Finding]:
    load, usable = os.getloadavg()[0], processor().usable
    text = f"{load:.1f} on {usable} core{'s' * (usable > 1)}"
    if load > 1.5 * usable:
        yield warning("load", f"{text}: others are computing", "measured speeds will be too low; try again later")
    else:
        yield ok("load", text)


def check_memory() -> Iterable[Finding]:
    total, free, limit = machine_memory(), available_memory(), memory_limit()
    text = f"{format_bytes(free)} free of {format_bytes(total)}"
    text += f"; the container's limit is {format_bytes(limit)}" if limit is not None else "; no container limit"
    if free < _SMALL or free < total / 10:
        yield warning("memory", text, "end other programs, or give --memory less than what is free")
    else:
        yield ok("memory", text)


def check_swap() -> Iterable[Finding]:
    total, used = swap_memory()
    if not total:
        yield ok("swap", "none")
    elif used > total / 10:
        text = f"{format_bytes(used)} of {format_bytes(total)} in use"
        yield warning("swap", text, "give --memory less than what is free: a swapped expert is slower than one on disk")
    else:
        yield ok("swap", f"{format_bytes(used)} of {format_bytes(total)} in use")


def check_page_cache() -> Iterable[Finding]:
    yield ok("page cache", f"{format_bytes(page_cache())} of files; experts are read past it where the disk allows it")


def check_limits() -> Iterable[Finding]:
    tight = []
    for name, kind in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY and soft < machine_memory():
            tight.append(f"{name} allows {format_bytes(soft)}")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FILES:
        tight.append(f"ulimit -n allows {files} open files")
    if tight:
        yield warning("limits", "; ".join(tight), "raise them in the shell that starts coterie, such as ulimit -n 1024")
    else:
        yield ok("limits", f"address space and data unlimited, {files} open files")


def check_accelerators() -> Iterable[Finding]:
    if not torch.accelerator.is_available():
        yield ok("accelerators", "none; everything runs on the processor")
        return
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    yield ok("accelerators", f"{count} x {kind}; this release runs on the processor all the same")


def check_hub() -> Iterable[Finding]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = place_of(_existing(cache))
    text = f"cache {cache}, {format_bytes(place.free)} free"
    text += "; offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "; online"
    if not os.access(_existing(cache), os.W_OK):
        yield warning("hub", f"{text}; not writable", "set HF_HOME to a directory of yours")
    else:
        yield ok("hub", text)


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    return (done.stdout.splitlines() or ["it says nothing"])[0]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores(found: Processor) -> str:
    text = f"{found.cores} core{'s' * (found.cores > 1)}"
    if found.affinity < found.cores:
        text += f", of which {found.affinity} may be used"
    if found.quota is not None:
        text += f", container quota {found.quota:g}"
    return text


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())
