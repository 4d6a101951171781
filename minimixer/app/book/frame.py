"""What surrounds a page: the bar with the search, the ways on, the title; and the start."""

import html

from .notes import Notes
from .order import PARTS, ROLES, Page, text_of


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


def said(page: Page) -> str:
    """What a page explains, as HTML."""
    return words(page.says)


def words(text: str) -> str:
    """A sentence as HTML, without links."""
    return Notes(lambda name: "").prose(text)


def start(pages: list[Page], rooms: dict[str, str], questions: str) -> str:
    """The order, and what each page explains. `rooms`: of the machinery, and what each is;
    `questions`: a table of HTML, or ""."""
    with_pages = [f'<li><a href="{page.href}">{html.escape(page.title)}</a>: {said(page)}</li>'
                  for page in pages if page.kind == "after"]  # fmt: skip
    if questions:
        asked = '<a href="#questions">Questions that many have</a>, and where the answers are'
        with_pages.append(f"<li>{asked}</li>")
    out = [
        '<article class="essay start"><h1>minimixer</h1>',
        "<p>MLP-Mixer from scratch, in NumPy and CuPy, as a book: notes on the left, code on "
        "the right, and all of the code is here. Names in code lead to where they are defined. "
        "Read the path from its first page; the appendices are there to look things up, and "
        "the machinery makes the same fast.</p>",
        *_install(pages),
        "<p>With the pages go:</p><ul>",
        *with_pages,
        '<li><a href="draw/index.html">A digit that you draw</a>: watch every layer of a Mixer as '
        "it reads it</li></ul>",
    ]
    for part, heading in PARTS.items():
        inside = [page for page in pages if page.part == part]
        if part == "machinery":
            out.append(f"<h2>{heading}</h2>{_folded(inside, rooms)}")
        elif inside:
            out.append(f"<h2>{heading}</h2>{_listed(inside)}")
        if part == "path" and questions:
            out.append(f'<h2 id="questions">Questions that many have</h2>{questions}')
    return "\n".join([*out, "</article>"])


def _install(pages: list[Page]) -> list[str]:
    """How to get it; and what runs where."""
    scripts = [page for page in pages if page.kind == "before"]
    if not scripts:
        return []
    essays = [page for page in pages if page.kind == "essay" and "baselines" in text_of(page.file)]
    links = [f'<a href="{p.href}">{html.escape(p.title)}</a>' for p in [*scripts, *essays]]
    return [
        "<p>To run what you read, get the repository (its README says where from). In its folder:"
        '</p><pre class="printed">pip install -e .\npython examples/train_mnist.py</pre>'
        "<p>With the package alone, wherever it is installed, <code>import minimixer</code>, all "
        "commands of <code>python -m minimixer</code> and the code of these pages run. The "
        "repository's folder is needed for what is in <code>examples/</code>, and so for "
        f"{', '.join(links[:-1])} and {links[-1]}.</p>"
    ]


def _listed(pages: list[Page]) -> str:
    items, number = [], 0
    for page in pages:
        number += page.kind not in ("essay", "after")
        label = {"essay": "essay", "after": ""}.get(page.kind, str(number))
        items.append(
            f'<li class="{page.kind}"><span class="number">{label}</span>'
            f'<a href="{page.href}">{html.escape(page.title)}</a>'
            + (f"<span>{said(page)}</span>" if page.kind != "essay" else "")
            + "</li>"
        )
    return f"<ol>{''.join(items)}</ol>"


def _folded(pages: list[Page], rooms: dict[str, str]) -> str:
    """Room by room; each page under what it explains, its file beside it."""
    out: list[str] = []
    listed = {room: list[Page]() for room in [*rooms, ""]}
    for number, page in enumerate(pages):
        named = page if page.kind != "essay" else pages[number + 1]  # before which it stands
        room = named.name.partition("/")[0]
        listed[room if room in rooms else ""].append(page)
    for room, inside in listed.items():
        name = f"<code>{room}/</code> {words(rooms[room])}" if room else "what gathers names"
        items = [
            f'<li class="folded"><a href="{page.href}">{said(page)}</a>'
            f"<code>{html.escape(page.name) if page.kind != 'essay' else 'an essay'}</code></li>"
            for page in inside
        ]
        out.append(f"<details><summary>{name} ({len(inside)} pages)</summary>"
                   f"<ol>{''.join(items)}</ol></details>")  # fmt: skip
    return "\n".join(out)


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
            says = "" if page.kind == "essay" else said(page)
            parts.append(f'<a class="{kind}" href="{page.href}"><small>{label}</small>'
                         f"<b>{html.escape(page.title)}</b><span>{says}</span></a>")  # fmt: skip
    return f"<footer>{''.join(parts)}</footer>"
