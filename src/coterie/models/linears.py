"""The kernel for few rows in a whole model: its experts and its dense linear layers, in place."""

from __future__ import annotations

from torch import Tensor, nn

from coterie.experts import Experts, few_rows, has_few

__all__ = ["FewRowsLinear", "use_kernel"]


class FewRowsLinear(nn.Linear):
    """A linear layer whose few rows go through `coterie.experts.few_rows`; more, and gradients, go as ever.

    Made from a linear layer in place (by its class), so parameters, names and hooks stay.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        rows = input.reshape(-1, input.shape[-1])
        weights = [self.weight] if self.bias is None else [self.weight, self.bias]
        if not has_few(rows, weights):
            return super().forward(input)
        return few_rows(rows, self.weight, self.bias).view(*input.shape[:-1], self.out_features)


def use_kernel(model: nn.Module, on: bool = True) -> None:
    """Let the experts and the linear layers of ``model`` use the kernel, or (``on=False``) torch's products again.

    In place. Whether to is `coterie.experts.wants_kernel`'s to say. A machine without a kernel computes as before.
    Of linear layers those of torch's own class are taken; gates are transformers' own and stay.
    """
    was, is_now = (nn.Linear, FewRowsLinear) if on else (FewRowsLinear, nn.Linear)
    for module in model.modules():
        if isinstance(module, Experts) and hasattr(module, "compiled"):
            setattr(module, "compiled", on)  # noqa: B010 (which kinds have it, this room does not know)
        elif type(module) is was:
            module.__class__ = is_now
