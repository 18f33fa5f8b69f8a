"""What a model does on a calibration text: one file that feeds merging, pruning, splitting, compressing and reports.

Letters: E experts, R routes (columns of the router's logits), D width, F inner width, n items of the shared sample.
All tensors are on the CPU, float32 unless said; means are over the tokens that were not padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.models.channel_statistics import ChannelUse, FFNStatistics
from coterie.models.identity import Opened, identity
from coterie.ops.similarity import centred_cosine_of_gram, cosine_of_gram, cosine_of_rows

__all__ = ["ChannelUse", "DomainUse", "FFNStatistics", "SiteStatistics", "Statistics"]


@dataclass(frozen=True, eq=False)
class DomainUse:
    """What a layer's experts did with the texts of one domain.

    Attributes:
        tokens: of the domain.
        usage: [E] assignments.
        gate_mass: [E] sum of their weights.
        channel: [E, F] mean |activation|, the input of ``down_proj``, over each expert's own tokens.
    """

    tokens: int
    usage: Tensor
    gate_mass: Tensor
    channel: Tensor


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """One layer with experts.

    Attributes:
        name: module path of the experts, such as "model.layers.0.mlp.experts".
        layer: number of the decoder layer.
        top_k: choices per token that the router was made for.
        tokens: that came through, padding left out.
        usage: [E] assignments; what capacity or a null dropped is not in it.
        gate_mass: [E] sum of the weights of those assignments.
        output_norm: [E] mean norm of the expert's output over its tokens; 0 where it had none.
        reap: [E] mean of weight x norm of the output over its tokens (REAP's saliency); 0 where it had none.
        input_mean: [E, D] mean input over its tokens.
        channel: [E, F] mean |activation|, the input of ``down_proj``, over its tokens.
        inputs: [n, D] a random sample of hidden states, the same tokens in every layer, in the dtype they had.
        sample_output: [E, D] mean output of every expert over ``inputs``, the unused ones too.
        sample_channel: [E, F] mean |activation| of every expert over ``inputs``.
        logit_gram: [R, R] float64, sum of products of router logits; None where the router tells none.
        logit_mean: [R] mean logits; None where ``logit_gram`` is.
        logit_tokens: tokens in those two.
        experts_of: expert of each route, where several routes lead to one; None: route r is expert r.
        domains: name -> what was counted in texts of that domain; empty where none was named.
    """

    name: str
    layer: int
    top_k: int
    tokens: int
    usage: Tensor
    gate_mass: Tensor
    output_norm: Tensor
    reap: Tensor
    input_mean: Tensor
    channel: Tensor
    inputs: Tensor
    sample_output: Tensor
    sample_channel: Tensor
    logit_gram: Tensor | None = None
    logit_mean: Tensor | None = None
    logit_tokens: int = 0
    experts_of: tuple[int, ...] | None = None
    domains: Mapping[str, DomainUse] = field(default_factory=dict)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.usage.shape[0]

    @property
    def frequency(self) -> Tensor:
        """[E] share of all assignments; sums to 1, or to 0 where there were none."""
        return self.usage / self.usage.sum().clamp(min=1)

    @cached_property
    def logit_similarity(self) -> Tensor:
        """[R, R] cosine of the columns of the router's logits (M-SMoE, eq. 1). A column of zeros is like no other.

        Raises:
            UnsupportedError: the router tells no logits.
        """
        return cosine_of_gram(self._gram()).float()

    @cached_property
    def centred_logit_similarity(self) -> Tensor:
        """[R, R] as `logit_similarity` with each token's mean logit taken off first, which softmax ignores anyway.

        Raises:
            UnsupportedError: the router tells no logits.
        """
        return centred_cosine_of_gram(self._gram()).float()

    @cached_property
    def logit_std(self) -> Tensor:
        """[R] standard deviation of the logits over tokens.

        Raises:
            UnsupportedError: the router tells no logits.
        """
        gram = self._gram()
        assert self.logit_mean is not None
        square = gram.diagonal() / max(1, self.logit_tokens)
        return (square - self.logit_mean.double().square()).clamp(min=0).sqrt().float()

    @cached_property
    def output_similarity(self) -> Tensor:
        """[E, E] cosine of the experts' mean outputs on the shared sample (HC-SMoE's feature)."""
        return cosine_of_rows(self.sample_output).float()

    @property
    def redundancy(self) -> float:
        """Mean over experts of the best output similarity to another expert: 1 for twins, about 0 for strangers."""
        if self.num_experts < 2:
            return 0.0
        others = self.output_similarity.clone().fill_diagonal_(-torch.inf)
        return float(others.max(dim=1).values.mean())

    @property
    def entropy(self) -> float:
        """Of the usage, over that of even usage: 1 where all experts are used alike, 0 where one does everything."""
        if self.num_experts < 2:
            return 1.0
        share = self.frequency.double()
        nats = -(share * share.clamp(min=1e-300).log()).sum()
        return float(nats / torch.tensor(float(self.num_experts)).log())

    def _gram(self) -> Tensor:
        if self.logit_gram is None:
            raise UnsupportedError(
                f"The router of {self.name} tells no logits, so experts cannot be compared by them. Compare by "
                "weight or by output instead."
            )
        return self.logit_gram


@dataclass(frozen=True, eq=False)
class Statistics:
    """Everything collected about one model. Frozen; thread-safe.

    Attributes:
        sites: experts' module path -> its statistics, in the order of the layers.
        ffns: module path -> statistics of a dense feed-forward; empty for a model with experts.
        model: hash of the model, see `coterie.models.identity`.
        about: for people and reports: "model" (as it was asked for), "family", "texts" (a list of name, domain,
            tokens), "seed" and "sample".
    """

    sites: Mapping[str, SiteStatistics]
    ffns: Mapping[str, FFNStatistics]
    model: str
    about: Mapping[str, Any]

    def __getitem__(self, name: str) -> SiteStatistics:
        """The statistics of a layer with experts.

        Raises:
            OptionError: there is no such layer.
        """
        if name not in self.sites:
            raise OptionError(f"The statistics have no layer {name!r}; they have: {', '.join(self.sites) or 'none'}.")
        return self.sites[name]

    @property
    def tokens(self) -> int:
        """Of the calibration text."""
        return max((one.tokens for one in self._layers()), default=0)

    @property
    def domains(self) -> list[str]:
        """Names of the domains of text, in the order they were given."""
        return list(dict.fromkeys(name for one in self._layers() for name in one.domains))

    def _layers(self) -> list[SiteStatistics | FFNStatistics]:
        return [*self.sites.values(), *self.ffns.values()]

    def check(self, checkpoint: Opened) -> None:
        """Refuse statistics of another model. Reads a few kilobytes of the checkpoint.

        Raises:
            CheckpointError: they are of another model; says of which.
        """
        found = identity(checkpoint)
        if found != self.model:
            raise CheckpointError(
                f"The statistics are of {self.about.get('model', 'another model')} ({self.model[:12]}), and "
                f"{checkpoint.path} is another model ({found[:12]}). Collect them again: coterie trace "
                f"{checkpoint.path} --text FILE --statistics FILE"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, under a temporary name first: what ``path`` held stays until this is whole.

        Raises:
            OptionError: the file cannot be written.
        """
        from coterie.models.statistics_file import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read back what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, no statistics, or of a version this Coterie does not read.
        """
        from coterie.models.statistics_file import read

        return read(Path(path))
