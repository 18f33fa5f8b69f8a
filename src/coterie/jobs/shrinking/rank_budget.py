"""How many ranks each matrix of a model gets, so that the model is as small as was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.errors import OptionError
from coterie.jobs.shrinking.source import Shrinking
from coterie.models.checkpoint import Checkpoint
from coterie.ops.lowrank import spectrum
from coterie.surgery.factorize import unit_of
from coterie.surgery.layer import LayerExperts
from coterie.surgery.ranks import MatrixSpectrum, allocate_ranks
from coterie.units import format_bytes, parse_bytes

__all__ = ["rank_plan", "target_bytes"]

_ROOMY = 256  # sides from which ranks are multiples of eight, which products like

Say = Callable[[str], None]


def target_bytes(checkpoint: Checkpoint, size: str | int) -> int:
    """What ``size`` means: a share of the model's bytes on disk, or bytes.

    Raises:
        OptionError: no size, nothing, or no less than there is.
    """
    whole = sum(part.nbytes for part in checkpoint.ranges.values())
    text = str(size).strip()
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError as error:
            raise OptionError(f"{size!r} is no share. Write a number and a percent sign, such as 50%.") from error
        wanted = int(whole * share / 100)
    else:
        wanted = parse_bytes(size)
    if not 0 < wanted < whole:
        raise OptionError(
            f"{size} of {checkpoint.path} is no smaller model: it has {format_bytes(whole)}. Ask for less, such as 50%."
        )
    return wanted


def rank_plan(found: Shrinking, wanted: int, keep: float, unit: str, say: Say) -> dict[str, dict[str, list[int]]]:
    """Site -> matrix -> rank of each expert, so that all of the model takes ``wanted`` bytes. Reads every layer once.

    The energy of a matrix is looked at relative to that of its layer, and weighed by the use of its expert.

    Raises:
        OptionError: ``wanted`` is too little; says what is possible.
    """
    names: list[tuple[str, str, int]] = []
    spectra: list[MatrixSpectrum] = []
    fixed = _other_bytes(found)
    for done, site in enumerate(found.chosen):
        say(f"Looking at the ranks: {done} of {len(found.chosen)} layers")
        layer = found.read(site)
        fixed += sum(w.numel() for name, w in layer.weights.items() if name.endswith("_bias")) * site.dtype.itemsize
        for name, expert, one in _spectra(found, layer, keep, unit):
            names.append((site.name, name, expert))
            spectra.append(one)
    itemsize = found.chosen[0].dtype.itemsize
    floor = fixed + itemsize * sum(one.cost(1) for one in spectra)
    if wanted < floor:
        raise OptionError(
            f"{format_bytes(wanted)} are out of reach: what is not an expert's matrix takes {format_bytes(fixed)}, and "
            f"with rank 1 everywhere the model takes {format_bytes(floor)}. Ask for more, or keep less of S."
        )
    multiple = 8 if min(min(one.m, one.n) for one in spectra) >= _ROOMY else 1
    while multiple > 1 and itemsize * sum(one.cost(multiple) for one in spectra) + fixed > wanted:
        multiple //= 2
    ranks = allocate_ranks(spectra, (wanted - fixed) // itemsize, multiple)
    plan: dict[str, dict[str, list[int]]] = {}
    for (site_name, name, _), rank in zip(names, ranks, strict=True):
        plan.setdefault(site_name, {}).setdefault(name, []).append(rank)
    return plan


def _spectra(found: Shrinking, layer: LayerExperts, keep: float, unit: str) -> list[tuple[str, int, MatrixSpectrum]]:
    """Of one layer: matrix, expert and spectrum, matrix after matrix."""
    moments, shares, size = found.moments(layer), found.shares(layer), layer.site.dtype.itemsize
    by_name: dict[str, list[Any]] = {}
    for expert in range(layer.num_experts):
        for name, heard_by in moments.of(expert).items():
            by_name.setdefault(name, []).append(spectrum(layer.weights[name][expert], heard_by).float())
    made = []
    for name, energies in by_name.items():
        total = sum(float(share * energy.sum()) for share, energy in zip(shares, energies, strict=True)) or 1.0
        m, n = layer.weights[name].shape[1:]
        rows = unit_of(name, unit) == "row"
        units = round(keep * (m if rows else n))
        beside = units * (n if rows else m) + (units * 4 + size - 1) // size  # and which they are, as int32
        for expert, energy in enumerate(energies):
            made.append((name, expert, MatrixSpectrum(m, n, energy, float(shares[expert]) / total, beside)))
    return made


def _other_bytes(found: Shrinking) -> int:
    """Bytes of the result that are no expert of a layer that changes."""
    checkpoint = found.checkpoint
    everything = sum(part.nbytes for part in checkpoint.ranges.values())
    skipped = [site for site in checkpoint.sites if site not in found.chosen]
    return everything - checkpoint.expert_bytes + sum(site.computed_bytes(site.num_experts) for site in skipped)
