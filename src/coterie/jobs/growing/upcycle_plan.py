"""What an upcycled model is to be made of, as options say it or a YAML file of mergekit-moe's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from coterie.errors import OptionError
from coterie.training.words import check_keys, number, table_of, text, texts, whole

__all__ = ["ExpertSource", "Gates", "UpcyclePlan", "copies_of", "read_plan"]

Gates = Literal["hidden", "hidden_last", "cheap_embed", "random", "zero"]

# gate modes of mergekit-moe that mean the same under another name here
_SAME: Mapping[str, str] = {"hidden_avg": "hidden", "uniform_random": "random"}
_FIELDS = (
    "base_model", "gate_mode", "dtype", "experts_per_token", "experts", "shared_experts", "architecture", "seed",
)  # fmt: skip
_EXPERT_FIELDS = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ExpertSource:
    """Where one expert comes from.

    Attributes:
        model: a dense checkpoint: directory or hub name.
        prompts, negative: texts that it should get, and that it should not.
        noise: added to its matrices, as a share of their root mean square.
        scale: factor on its output.
    """

    model: str
    prompts: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class UpcyclePlan:
    """A mixture to be made of dense models.

    Attributes:
        base: whose attention, norms and embeddings it has.
        experts: in the order of their ids.
        k: experts per token.
        gates: how the router begins: ``hidden`` (mean inputs of the layer over the prompts), ``hidden_last`` (of their
            last tokens), ``cheap_embed`` (mean embeddings, the same for all layers), ``random`` or ``zero``.
        shared: an expert that every token passes; None without.
        dtype: of the weights; None as in ``base``.
        seed: of noise and of random rows.

    Raises:
        OptionError: something that is out of its range or does not go together; says what to write instead.
    """

    base: str
    experts: tuple[ExpertSource, ...]
    k: int = 2
    gates: Gates = "random"
    shared: ExpertSource | None = None
    dtype: str | None = None
    seed: int = 0
    architecture: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.k <= len(self.experts):
            raise OptionError(
                f"A token goes to 1 up to all of the experts: k is {self.k}, and there are {len(self.experts)} experts."
            )
        if self.gates not in get_args(Gates):
            raise OptionError(f"There is no start {self.gates!r} of gates. There are: {', '.join(get_args(Gates))}.")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise OptionError(f"Weights are {', '.join(_DTYPES)}, not {self.dtype!r}.")
        if any(each.noise < 0 for each in self.experts):
            raise OptionError("Noise is a share of the weights' size: 0 or more, such as 0.01.")
        if self.needs_prompts:
            self._check_prompts()

    @property
    def needs_prompts(self) -> bool:
        """Whether the router begins with what prompts look like."""
        return self.gates in ("hidden", "hidden_last", "cheap_embed")

    @property
    def one_model(self) -> bool:
        """Whether all experts are of the base."""
        return all(each.model == self.base for each in self.experts)

    def _check_prompts(self) -> None:
        for expert, each in enumerate(self.experts):
            if not each.prompts:
                raise OptionError(
                    f"Expert {expert} ({each.model}) has no prompts, and gates by {self.gates} are made of them. Give "
                    "each expert one, or choose random gates and train."
                )
        if len(self.experts) > 1 and len({(each.prompts, each.negative) for each in self.experts}) == 1:
            raise OptionError("All experts have the same prompts, so nothing tells them apart. Give each its own.")


def copies_of(
    model: str, count: int, k: int, *, noise: float = 0.0, gates: Gates = "random", seed: int = 0
) -> UpcyclePlan:
    """A plan of ``count`` copies of one dense model.

    Raises:
        OptionError: as `UpcyclePlan`.
    """
    return UpcyclePlan(model, tuple(ExpertSource(model, noise=noise) for _ in range(count)), k, gates, seed=seed)


def read_plan(path: str | Path) -> UpcyclePlan:
    """The plan in a YAML file: mergekit-moe's fields, and ``seed``. Models are looked for beside the file first.

    Raises:
        OptionError: the file cannot be read, a field is unknown, missing or of another kind.
    """
    file = Path(path).expanduser()
    where = file.name
    fields = table_of(_parsed(file), where)
    check_keys(fields, _FIELDS, where)
    experts = fields.get("experts")
    if not isinstance(experts, list) or not experts:
        raise OptionError(f"{where}: experts must be a list of at least one, each with a source_model.")
    shared = fields.get("shared_experts") or []
    if not isinstance(shared, list) or len(shared) > 1:
        raise OptionError(f"{where}: shared_experts must be a list of at most one.")
    mode = text(fields.get("gate_mode", "hidden"), f"{where}: gate_mode")
    optional = {name: text(fields[name], f"{where}: {name}") for name in ("dtype", "architecture") if fields.get(name)}
    return UpcyclePlan(
        base=_model(fields, "base_model", where, file.parent),
        experts=tuple(_expert(each, f"{where}: expert {n}", file.parent) for n, each in enumerate(experts)),
        k=whole(fields.get("experts_per_token", 2), f"{where}: experts_per_token", 1),
        gates=cast(Gates, _SAME.get(mode, mode)),
        shared=_expert(shared[0], f"{where}: shared expert", file.parent) if shared else None,
        seed=whole(fields.get("seed", 0), f"{where}: seed", 0),
        **optional,
    )


def _parsed(file: Path) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file} cannot be read ({error.strerror}). Name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at = getattr(error, "problem_mark", None)
        line = f", line {at.line + 1}" if at is not None else ""
        why = getattr(error, "problem", None) or "it is not UTF-8 text"
        raise OptionError(f"{file}{line} is not YAML: {why}. Write 'name: value' lines, indented evenly.") from error


def _expert(words: Any, where: str, beside: Path) -> ExpertSource:
    fields = table_of(words, where)
    check_keys(fields, _EXPERT_FIELDS, where)
    noise, scale = fields.get("noise_scale"), fields.get("residual_scale")
    return ExpertSource(
        model=_model(fields, "source_model", where, beside),
        prompts=_prompts(fields, "positive_prompts", where),
        negative=_prompts(fields, "negative_prompts", where),
        noise=0.0 if noise is None else number(noise, f"{where}.noise_scale"),
        scale=1.0 if scale is None else number(scale, f"{where}.residual_scale"),
    )


def _prompts(fields: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    return texts(fields[name], f"{where}.{name}") if fields.get(name) else ()


def _model(fields: Mapping[str, Any], name: str, where: str, beside: Path) -> str:
    if not fields.get(name):
        raise OptionError(f"{where}: {name} is missing. Write a checkpoint directory or a hub name.")
    value = text(fields[name], f"{where}.{name}")
    near = beside / value
    if near.is_dir():
        return str(near)
    if "+" in value:
        raise OptionError(f"{where}: {value!r} adds an adapter to a model. Merge it into its base and save that first.")
    return value
