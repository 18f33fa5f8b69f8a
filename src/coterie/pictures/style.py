"""Colours and style sheet of the pages that Coterie writes, for light and dark."""

from __future__ import annotations

# from far below a fair share (blue) over fair (neutral) to far above (orange); told apart by the colour-blind too
LIGHT = (
    "#1d5390", "#3f7ab3", "#72a3cd", "#a6c6e1", "#d0dfec", "#efece6", "#f6dcba", "#f2bd7c", "#e5933f", "#c96713",
    "#944003",
)  # fmt: skip
DARK = (
    "#9fd0ff", "#6fafea", "#4788c4", "#2f6496", "#254565", "#2f2e2c", "#5a3d18", "#875518", "#b9731b", "#e6992f",
    "#ffca72",
)  # fmt: skip


def _steps(colours: tuple[str, ...]) -> str:
    return "".join(f"--u{number}:{colour};" for number, colour in enumerate(colours))


_DARK_ROOT = (
    ":root{color-scheme:dark;--bg:#171614;--panel:#201f1c;--ink:#ece9e3;--soft:#a8a298;--line:#38352f;--bar:#8fb4da;"
    f"{_steps(DARK)}}}"
)

STYLE = (
    ":root{color-scheme:light;--bg:#fbfaf8;--panel:#fff;--ink:#23211d;--soft:#6a655c;--line:#e2ded6;--bar:#48719c;"
    f"{_steps(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{{_DARK_ROOT}}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',sans-serif}"
    "main{max-width:1060px;margin:0 auto;padding:32px 20px 48px}"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}"
    "h2{font-size:18px;margin:0 0 4px}"
    "p{margin:0 0 12px;color:var(--soft);max-width:72ch}"
    "section{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:20px;margin:20px 0}"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}"
    ".cards div{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px}"
    ".cards dd{margin:0;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".cards dt{color:var(--soft);font-size:13px;line-height:1.35}"
    "svg{display:block;max-width:100%;height:auto}"
    "svg text{fill:var(--soft);font-size:11px;font-family:inherit}"
    "g rect:hover{stroke:var(--ink);stroke-width:1.5}"
    + "".join(f".c{number}{{fill:var(--u{number})}}" for number in range(len(LIGHT)))
    + ".never{fill:none;stroke:var(--u0);stroke-width:1}"
    ".bar{fill:var(--bar)}.fair{stroke:var(--soft);stroke-dasharray:2 2}"
    ".scroll{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}"
    "th{font-weight:600;color:var(--soft);font-size:13px}"
    "th:first-child,td:first-child,.layers th:nth-child(2),.layers td:nth-child(2){text-align:left}"
    ".words td:last-child,.words th:last-child{text-align:left;white-space:normal}"
    "small{color:var(--soft)}"
    "tbody tr:last-child td{border-bottom:0}"
    "dl.terms dt{font-weight:600;margin-top:8px}dl.terms dd{margin:0;color:var(--soft);max-width:76ch}"
    "footer{color:var(--soft);font-size:13px;margin-top:24px;overflow-wrap:anywhere}"
    "@media print{section{break-inside:avoid}}"
)
