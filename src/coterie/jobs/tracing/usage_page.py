"""The page of `coterie inspect --text --report`: one HTML file, nothing fetched, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING

from coterie import __version__
from coterie.jobs.tracing.load_balance import SiteUse
from coterie.pictures import heatmap, histogram, legend
from coterie.pictures.page import cards, section
from coterie.pictures.page import page as framed
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.tracing.usage import TextUse, Usage

_TERMS = (
    ("use", "How many tokens an expert had, over the mean of its layer: 1 is a fair share."),
    ("CV", "Coefficient of variation of the use: its standard deviation over its mean. 0 is even. A router that is "
     "perfectly even in the long run would still show the value in grey with so few tokens."),
    ("peak", "The largest use: what the busiest expert has to bear."),
    ("unused", "Experts that no token was sent to."),
    ("effective", "exp of the entropy of the use: as many experts, used evenly, would be as spread out."),
    ("confident", "Mean share of a token's largest weight in all its weights; one divided by the number of choices is "
     "undecided, 100% is certain."),
    ("kept", "Share of a token's experts that the token before it had too; in grey, what it would be were the tokens "
     "in any order. The difference is what a cache of recent experts gains from."),
)  # fmt: skip


def page(usage: Usage) -> str:
    """The whole document."""
    parts = [_cards(usage), _overview(usage), _layers(usage.sites), _texts(usage), _terms()]
    footer = f"Memory {usage.budget.describe()}. The budget changes no route. coterie {__version__}"
    return framed(f"{usage.model}: experts used", _lead(usage), parts, footer)


def _lead(usage: Usage) -> str:
    sites = usage.sites
    experts = {site.num_experts for site in sites}
    each = f"{experts.pop()} experts in each" if len(experts) == 1 else "experts"
    texts = usage.texts[0].text.describe() if len(usage.texts) == 1 else f"{len(usage.texts)} texts"
    return f"{usage.family}, {len(sites)} layers with experts: which of the {each} were used by {texts}."


def _cards(usage: Usage) -> str:
    sites = usage.sites
    kept = f"of a token's experts kept from the one before ({fmean(s.locality_by_chance for s in sites):.0%} by chance)"
    cells = [
        (f"{usage.tokens:,}", "tokens read"),
        (f"{fmean(s.effective for s in sites):.1f} of {sites[0].num_experts}", "experts in effect, mean over layers"),
        (f"{fmean(s.locality for s in sites):.0%}", kept),
        (f"{fmean(s.confidence for s in sites):.0%}", "of a token's weight on its first choice"),
        (f"{sum(s.dead for s in sites):,}", f"of {sum(s.num_experts for s in sites):,} experts never used"),
        (f"{usage.hit_rate:.0%}", f"of uses found in memory; {format_bytes(usage.bytes_read)} read"),
    ]
    return cards(cells)


def _overview(usage: Usage) -> str:
    sites = usage.sites
    drawn = heatmap(
        f"Use of each expert in {len(sites)} layers, over a fair share", [s.layer for s in sites],
        [s.relative for s in sites],
    )  # fmt: skip
    return section(
        "Use of every expert", "A row is a layer, a column an expert. Hover for the use over a fair share.",
        legend("a quarter or less", "a fair share", "four times or more"), drawn,
    )  # fmt: skip


def _layers(sites: Sequence[SiteUse]) -> str:
    head = ("layer", "use, most first", "CV", "peak", "unused", "effective", "confident", "kept")
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _layer_row(site))}</tr>" for site in sites)
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    table = f'<table class="layers"><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>'
    return section("Layer by layer", "The dashed line is a fair share. The terms are explained below.", table)


def _layer_row(site: SiteUse) -> list[str]:
    return [
        str(site.layer), histogram(site.relative, f"Use in layer {site.layer}, most used expert first"),
        f"{site.cv:.2f} <small>{site.cv_by_chance:.2f}</small>", f"{site.peak:.1f}×", str(site.dead),
        f"{site.effective:.1f} of {site.num_experts}", f"{site.confidence:.0%}",
        f"{site.locality:.0%} <small>{site.locality_by_chance:.0%}</small>",
    ]  # fmt: skip


def _texts(usage: Usage) -> str:
    from coterie.jobs.tracing.usage_sheet import format_perplexity

    rows = "".join(
        f"<tr><td>{escape(text.text.name)}</td><td>{text.tokens:,}</td>"
        f"<td>{'its beginning' if text.text.cut else 'all of it'}</td><td>{format_bytes(text.text.nbytes)}</td>"
        f"<td>{format_perplexity(text.perplexity)}</td></tr>"
        for text in usage.texts
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("text", "tokens", "read", "size", "perplexity"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    text = f"Every {usage.window:,} tokens the model begins with an empty cache."
    made = section("Texts" if len(usage.texts) > 1 else "Text", text, table)
    return made if len(usage.texts) == 1 else made + _differences(usage) + "".join(map(_against, _pairs(usage)))


def _differences(usage: Usage) -> str:
    rows = "".join(f"<tr><td>{escape(a)} and {escape(b)}</td><td>{v:.1%}</td></tr>" for a, b, v in usage.differences())
    rows += f"<tr><td>stretches of one text, by chance</td><td>{usage.difference_within():.1%}</td></tr>"
    return section(
        "How different the texts are",
        "The share of the use that would have to move to other experts for the two to be alike, mean over layers.",
        f"<table><tbody>{rows}</tbody></table>",
    )


def _pairs(usage: Usage) -> list[tuple[TextUse, Usage]]:
    return [(text, usage) for text in usage.texts]


def _against(pair: tuple[TextUse, Usage]) -> str:
    """One text's use over that of all texts together."""
    text, usage = pair
    rows = []
    for own, every in zip(text.sites, usage.sites, strict=True):
        ratio = own.shares / every.shares.clamp_min(1e-12)
        rows.append(ratio.where(every.load > 0, ratio.new_ones(()) * 0))
    drawn = heatmap(
        f"Use of each expert by {text.text.name}, over its use by all texts", [site.layer for site in text.sites], rows,
    )  # fmt: skip
    return section(
        text.text.name, "What it uses more (orange) and less (blue) than all texts together. Hover for the ratio.",
        legend("a quarter or less", "as all texts", "four times or more"), drawn,
    )  # fmt: skip


def _terms() -> str:
    made = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS)
    return f'<section><h2>How to read it</h2><dl class="terms">{made}</dl></section>'
