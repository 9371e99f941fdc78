"""Building blocks of self-contained HTML pages: no script, no network, readable on a phone and in print."""

from __future__ import annotations

import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --line: #8884; --bar: #2a7de1; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; }
:is(.scroll, a, summary):focus-visible { outline: 2px solid var(--bar); outline-offset: 1px; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
.scroll > table { width: max-content; max-width: max(100%, 46rem); }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
@media (max-width: 40rem) { .scroll > table { max-width: 60rem; } }
.bar { background: #8883; width: clamp(4rem, 15vw, 10rem); height: .8rem; margin-top: .35rem; }
.bar > div { background: var(--bar); height: 100%; }
svg.chart { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { color: color-mix(in srgb, currentColor 75%, transparent); }
.charts {
  display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr));
}
.charts svg.chart { width: 100%; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
pre { padding: .8rem; border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere; }
.bad { font-weight: 600; }
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, svg.chart { break-inside: avoid; }
  .scroll { overflow-x: visible; } .scroll > table { max-width: 100%; }
  th, td { padding: .2rem .4rem; } details::details-content { content-visibility: visible; }
  .charts { grid-template-columns: repeat(3, 1fr); }
}
"""


class Markup(str):
    """Text that is HTML already."""


def escaped(text: object) -> str:
    """Text as HTML; :class:`Markup` as it is."""
    return text if isinstance(text, Markup) else html.escape(str(text))


def bar(fraction: float) -> Markup:
    """A horizontal bar, with the percentage for screen readers."""
    return Markup(
        f'<div class="bar" role="img" aria-label="{fraction:.0%} kept">'
        f'<div style="width:{min(fraction, 1):.0%}"></div></div>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]], label: str = "") -> Markup:
    """A table that scrolls sideways where the window is narrow.

    Args:
        header: Of the columns.
        rows: Their cells.
        label: Told to screen readers; made of the header by default.
    """
    label = label or f"Table: {', '.join(filter(None, header)) or 'facts'}"
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Markup(
        f'<div class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paragraph(text: object) -> Markup:
    """A paragraph."""
    return Markup(f"<p>{escaped(text)}</p>")


def small(text: object) -> Markup:
    """Text that matters less than what stands beside it."""
    return Markup(f"<small>{escaped(text)}</small>")


def code(text: str) -> Markup:
    """Text to copy."""
    return Markup(f"<pre><code>{html.escape(text)}</code></pre>")


def figure(svg: str, caption: str) -> Markup:
    """A chart and what it shows."""
    return Markup(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")


def figures(svgs: Sequence[str], caption: str) -> Markup:
    """Small charts, as many side by side as the window holds, and what they show."""
    return figure(f'<div class="charts">{"".join(svgs)}</div>', caption)


def folded(summary: object, content: Sequence[object]) -> Markup:
    """What is shown on demand, and in print."""
    return Markup(f"<details><summary>{escaped(summary)}</summary>{''.join(map(escaped, content))}</details>")


def page(title: str, lead: Sequence[object], sections: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A whole page.

    Args:
        title: Its heading.
        lead: What stands before the sections.
        sections: Heading and content of each; those without content are left out.
    """
    shown = [(heading, content) for heading, content in sections if content]
    links = "".join(
        f'<li><a href="#s{index}">{html.escape(heading)}</a></li>' for index, (heading, _) in enumerate(shown)
    )
    body = "".join(
        f'<section id="s{index}"><h2>{html.escape(heading)}</h2>{"".join(map(escaped, content))}</section>'
        for index, (heading, content) in enumerate(shown)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1>{''.join(map(escaped, lead))}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>{body}</main></body></html>\n'
    )
