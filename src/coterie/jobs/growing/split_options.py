"""Options of splitting put together and put into words: what is done, after whom, and what of it is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from coterie.errors import OptionError
from coterie.models.identity import identity
from coterie.models.statistics import Statistics
from coterie.ops.partition import even_channels
from coterie.surgery.channels import Channels
from coterie.surgery.choose import Cut, shared_size
from coterie.surgery.dense import DenseCheckpoint
from coterie.surgery.dense_split import Decision, Scale, SplitOptions
from coterie.surgery.method import Method

__all__ = ["PAPERS", "exactness", "facts_of", "method_of", "options_as_listed", "shares", "split_options"]

PAPERS: Mapping[str, str] = {
    "read-me": "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts, arXiv 2410.19123",
    "kmeans": "LLaMA-MoE: Building Mixture-of-Experts from LLaMA with Continual Pre-training, arXiv 2406.16554",
    "gradient": "LLaMA-MoE: Building Mixture-of-Experts from LLaMA with Continual Pre-training, arXiv 2406.16554",
    "co-activation": "MoEfication: Transformer Feed-forward Layers are Mixtures of Experts, arXiv 2110.01786",
    "kmeans-activations": "CMoE: Converting Mixture-of-Experts from Dense, arXiv 2502.04416",
}  # fmt: skip


def split_options(
    dense: DenseCheckpoint, experts: int | None, k: int | None, *, way: str,
    named: Sequence[str], seen: bool, shared: float, density: float | None, permanent: bool, router: str,
    sharpness: float, scale: Scale, seed: int,
) -> SplitOptions:  # fmt: skip
    """Options as they were given, with what is left to choose chosen.

    Args:
        named: domains of text that are known.
        seen: whether there is text at all.

    Raises:
        OptionError: no number of experts, one that does not divide, or options that do not go together.
    """
    if experts is None and not named:
        raise OptionError("Say how many experts to make: --experts 8. With domains of text it is one for each.")
    count = experts if experts is not None else len(named)
    if way == "auto":
        by_domain = density is not None or (len(named) == count > 1)
        way = "activation" if by_domain else "kmeans-activations" if seen else "kmeans"
    cut = Cut(count, way, shared, density, permanent, seed)
    _check_even(dense, cut)
    usual = 1 if density is not None else min(2, count)
    return SplitOptions(cut, usual if k is None else k, router, sharpness, scale)


def options_as_listed(
    lists: Channels, experts: int | None, k: int | None, router: str, sharpness: float, scale: Scale
) -> SplitOptions:
    """Options of an earlier split, with another router or k.

    Raises:
        OptionError: another number of experts than it has.
    """
    count = next(iter(lists.layers.values())).num_experts
    if experts not in (None, count):
        raise OptionError(f"The channels are of {count} experts, not {experts}. Leave --experts out.")
    about = lists.about
    cut = Cut(
        count, about.get("way", "kmeans"), about.get("shared", 0.0), about.get("density"),
        bool(about.get("permanent", False)), int(about.get("seed", 0)),
    )  # fmt: skip
    return SplitOptions(cut, int(about.get("k", min(2, count))) if k is None else k, router, sharpness, scale)


def shares(options: SplitOptions, lists: Channels | None) -> bool:
    """Whether there will be a shared expert."""
    if lists is not None:
        return any(len(layer.shared) for layer in lists.layers.values())
    return options.cut.shared > 0 or options.cut.permanent


def facts_of(options: SplitOptions, known: Statistics | None, dense: DenseCheckpoint) -> dict[str, Any]:
    """What the file of channels says of itself."""
    return {
        **{name: value for name, value in asdict(options.cut).items() if value is not None}, "k": options.k,
        "domains": known.domains if known is not None else [], "model": identity(dense),
    }  # fmt: skip


def method_of(options: SplitOptions, known: Statistics | None, lists: Channels | None) -> Method:
    """What is done, for the card."""
    cut = options.cut
    alike = options.all_on and not options.overlapping and options.start(known is not None) == "zero"
    exact = alike or cut.density == 1
    summary = f"Every feed-forward was cut into {cut.experts} experts by {cut.way}, {options.k} of them for a token."
    calibration = {} if known is None else {
        "tokens": known.tokens, "texts": ", ".join(text["name"] for text in known.about.get("texts", [])),
        "statistics of": known.model[:12],
    }  # fmt: skip
    given = {**asdict(cut), **asdict(options), "channels": "given" if lists is not None else "chosen"}
    given.pop("cut")
    paper = PAPERS["read-me"] if options.overlapping else PAPERS.get(cut.way, "")
    return Method("split", "exact" if exact else "lossy", summary, paper, calibration, given)


def exactness(options: SplitOptions, found: Mapping[str, Decision]) -> str:
    """In words: what of the dense model's function is kept."""
    whole = all(each.channels.whole for each in found.values())
    start = next(iter(found.values())).about["router"]
    if options.cut.density == 1.0:
        return "exact: every expert has all channels, so that any router gives the dense model."
    if options.overlapping:
        return "lossy: a token meets the channels of its experts alone. Each expert is the masked dense layer."
    if not whole or not options.all_on:
        return f"lossy: {options.k} of {options.cut.experts} experts; all of them, weighted alike, are the dense model."
    if start == "zero":
        return "exact: all experts are on and weigh alike, which is the dense model to rounding."
    return (
        f"near: all experts are on, their weights equal to about {options.sharpness:g} of themselves; quite equal ones "
        "would be the dense model. --router zero makes them so."
    )


def _check_even(dense: DenseCheckpoint, cut: Cut) -> None:
    """Refuse early what no layer could do."""
    for inner in {ffn.shape.inner for ffn in dense.ffns}:
        if cut.density is None:
            even_channels(inner - shared_size(inner, cut.experts, cut.shared), cut.experts)
