"""The heat maps of `coterie inspect --text --png`, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
import math
from typing import TYPE_CHECKING, Any

from coterie.errors import MissingExtraError
from coterie.pictures.heatmap import TOP
from coterie.pictures.style import LIGHT

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.jobs.tracing.usage import Usage

_INK, _SOFT = "#23211d", "#6a655c"


def require_matplotlib() -> None:
    """Before long work: is the library there?

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="report")


def png(usage: Usage) -> bytes:
    """All texts over a fair share, with the effective number of experts of each layer; then each text over all.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, and pyplot's global state untouched
    from matplotlib.figure import Figure

    count, layers = len(usage.texts), len(usage.sites)
    maps = 1 if count == 1 else 1 + count
    tall = min(9.0, max(1.6, 0.17 * layers))
    figure: Any = Figure(figsize=(11, maps * (tall + 0.9) + 0.5), dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(maps, 2, width_ratios=(5, 1))
    figure.suptitle(f"{usage.model}: experts used by {usage.tokens:,} tokens (white: never)", color=_INK, fontsize=13)
    rows = [site.relative for site in usage.sites]
    first = _map(figure, grid[0, 0], usage, rows, _title(usage), "times a fair share")
    _effective(figure.add_subplot(grid[0, 1], sharey=first), usage)
    if count > 1:
        for number, text in enumerate(usage.texts, 1):
            ratios = [
                own.shares / all_.shares.clamp_min(1e-12) for own, all_ in zip(text.sites, usage.sites, strict=True)
            ]
            _map(figure, grid[number, :], usage, ratios, text.text.describe(), "times its use by all texts")
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _title(usage: Usage) -> str:
    return usage.texts[0].text.describe() if len(usage.texts) == 1 else "all texts together"


def _map(figure: Any, place: Any, usage: Usage, rows: list[Tensor], title: str, label: str) -> Any:
    from matplotlib.colors import ListedColormap

    axes = figure.add_subplot(place)
    most = max(len(row) for row in rows)
    table = [[_log(ratio) for ratio in row.tolist()] + [math.nan] * (most - len(row)) for row in rows]
    image = axes.imshow(table, cmap=ListedColormap(LIGHT), vmin=-1.1, vmax=1.1, aspect="auto", interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=10, color=_SOFT)
    axes.set_xlabel("expert", color=_SOFT, fontsize=9)
    axes.set_ylabel("layer", color=_SOFT, fontsize=9)
    axes.tick_params(colors=_SOFT, labelsize=8, length=0)
    _layer_ticks(axes, usage)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], pad=0.01, fraction=0.02, aspect=30, shrink=0.6)
    bar.ax.set_yticklabels([f"1/{TOP:g}", "1", f"{TOP:g}"], fontsize=8, color=_SOFT)
    bar.set_label(label, fontsize=8, color=_SOFT)
    bar.outline.set_visible(False)
    return axes


def _layer_ticks(axes: Any, usage: Usage) -> None:
    layers = [site.layer for site in usage.sites]
    step = max(1, math.ceil(len(layers) / 24))
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])


def _effective(axes: Any, usage: Usage) -> None:
    sites = usage.sites
    axes.barh(range(len(sites)), [site.effective for site in sites], height=0.7, color="#48719c")
    axes.set_xlim(0, max(site.num_experts for site in sites))
    axes.set_title("experts in effect", loc="left", fontsize=10, color=_SOFT)
    axes.tick_params(colors=_SOFT, labelsize=8, length=0, labelleft=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _log(ratio: float) -> float:
    """-1 at a quarter and below, 0 at 1, 1 at four and above; no number, and so no colour, where nothing was used."""
    return math.nan if ratio <= 0 else max(-1.0, min(1.0, math.log(ratio) / math.log(TOP)))
