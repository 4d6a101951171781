"""What surrounds a page: the bar with the search, the ways on, the title; and the start."""

import html

from .order import PARTS, ROLES, Page


def whole(title: str, body: str, before: Page | None = None, after: Page | None = None) -> bytes:
    """A file of HTML. `before` and `after` are its neighbours."""
    named = f"{title} - minimixer" if title else "minimixer"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(named)}</title>"
        '<link rel="stylesheet" href="style.css"><link rel="icon" href="data:,"></head>\n'
        f"<body>{_bar(before, after)}\n<main>\n{body}\n</main>\n{_foot(before, after)}\n"
        '<script src="index.js"></script><script src="search.js"></script></body></html>\n'
    ).encode()


def title(page: Page, pages: list[Page]) -> str:
    """A module's name, and what it is in the book."""
    role = ROLES[page.kind]
    if page.kind == "path":
        path = [other for other in pages if other.kind == "path"]
        role = f"page {path.index(page) + 1} of the {len(path)} of the path"
    return f'<header><p class="role">{role}</p><h1>{html.escape(page.title)}</h1></header>'


def start(pages: list[Page]) -> str:
    """The order, and what each page explains."""
    out = [
        '<article class="essay start"><h1>minimixer</h1>',
        "<p>MLP-Mixer from scratch, in NumPy and CuPy, as a book: notes on the left, code on "
        "the right, and all of the code is here. Names in code lead to where they are defined. "
        "Read the path from its first page; the appendices are there to look things up, and "
        "the machinery makes the same fast.</p>",
        "<p>With the pages go:</p><ul>",
        *[f'<li><a href="{page.href}">{html.escape(page.title)}</a>: {page.says}</li>'
          for page in pages if page.kind == "after"],
        '<li><a href="draw/index.html">A digit that you draw</a>: watch every layer of a Mixer as '
        "it reads it</li></ul>",
    ]  # fmt: skip
    for part, heading in PARTS.items():
        items, number = [], 0
        for page in pages:
            if page.part == part:
                number += page.kind == part
                label = {"essay": "essay", "after": ""}.get(page.kind, str(number))
                items.append(
                    f'<li class="{page.kind}"><span class="number">{label}</span>'
                    f'<a href="{page.href}">{html.escape(page.title)}</a>'
                    + (f"<span>{html.escape(page.says)}</span>" if page.kind != "essay" else "")
                    + "</li>"
                )
        if items:
            out.append(f"<h2>{heading}</h2><ol>{''.join(items)}</ol>")
    return "\n".join([*out, "</article>"])


def _bar(before: Page | None, after: Page | None) -> str:
    return (
        '<nav class="bar"><a class="home" href="index.html">minimixer</a>'
        '<div class="search"><input type="search" placeholder="Search" aria-label="Search" '
        'autocomplete="off"><ol id="hits" hidden></ol></div>'
        f'<span class="turn">{_turn(before, "prev", "←")}{_turn(after, "next", "→")}</span></nav>'
    )


def _turn(page: Page | None, rel: str, arrow: str) -> str:
    if page is None:
        return f'<span class="none">{arrow}</span>'
    label = "Previous" if rel == "prev" else "Next"
    title = html.escape(f"{label}: {page.title}")
    return f'<a rel="{rel}" href="{page.href}" title="{title}" aria-label="{title}">{arrow}</a>'


def _foot(before: Page | None, after: Page | None) -> str:
    parts = []
    for page, label, kind in (before, "Previous", "before"), (after, "Next", "after"):
        if page is not None:
            says = "" if page.kind == "essay" else html.escape(page.says)
            parts.append(f'<a class="{kind}" href="{page.href}"><small>{label}</small>'
                         f"<b>{html.escape(page.title)}</b><span>{says}</span></a>")  # fmt: skip
    return f"<footer>{''.join(parts)}</footer>"
