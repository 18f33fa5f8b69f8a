"""The frame of a page: head, cards of numbers, sections."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coterie.pictures.style import STYLE


def page(title: str, lead: str, parts: Sequence[str], footer: str = "") -> str:
    """A whole document of HTML; ``parts`` are HTML already, title, lead and footer are text."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
    )
    begin = f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>"
    end = f"<footer>{escape(footer)}</footer>" if footer else ""
    body = "\n".join(part for part in (begin, *parts, end) if part)
    return f"{head}<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"


def cards(cells: Sequence[tuple[str, str]]) -> str:
    """Numbers in a row, each with what it is."""
    made = "".join(f"<div><dd>{escape(number)}</dd><dt>{escape(text)}</dt></div>" for number, text in cells)
    return f'<dl class="cards">{made}</dl>'


def section(title: str, text: str, *parts: str) -> str:
    """A part of a page; ``parts`` are HTML, each scrolls where it is too wide."""
    body = "".join(f'<div class="scroll">{part}</div>' for part in parts)
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
