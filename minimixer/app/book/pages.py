"""The pages of the site: a row for each note and its code, and what surrounds them.

Everything is made in memory first, so that an error leaves nothing half written.
"""

import html
import json
from importlib import resources
from pathlib import Path

from . import code
from .cut import rows, words_only
from .essays import Essay
from .names import Names, Place, dotted
from .notes import Notes
from .order import BESIDE, ESSAYS, PACKAGE, PARTS, ROLES, Page, book, text_of

SHIPPED = ("style.css", "search.js", "math.woff2", "math.txt")


class Site:
    """All files of the site, {name: bytes}, made by `build`; and what was found on the way."""

    def __init__(self, package: Path = PACKAGE):
        self.pages = book(package)
        self.names = Names(self.pages)
        self.files: dict[str, bytes] = {}
        self.index: list[tuple[str, str, str]] = []  # title, address, text
        self.typeset, self.left = 0, []  # type: int, list[str]
        self.known = {page.name: page.href for page in self.pages}
        self.beside = [
            Page(name, package.parent / name, "before", "beside", says, says)
            for name, says in BESIDE.items()
            if (package.parent / name).is_file()
        ]
        self.known |= {page.name: page.href for page in self.beside}

    def build(self) -> dict[str, bytes]:
        for number, page in enumerate(self.pages):
            body = self._essay(page) if page.kind == "essay" else self._module(page)
            self._write(page.href, page.title, body, number)
        for page in self.beside:
            self._write(page.href, page.title, self._essay(page))
        self._write("index.html", "minimixer", self._start())
        self.files["index.js"] = f"const INDEX = {json.dumps(self.index)};\n".encode()
        for name in SHIPPED:
            self.files[name] = (resources.files(__package__) / name).read_bytes()
        return self.files

    # ---- modules --------------------------------------------------------------------------------

    def _module(self, page: Page) -> str:
        source, module = text_of(page.file), self.names.modules.get(dotted(page.name))
        cut = rows(source, module.tree if module else None)
        notes = Notes(lambda name: self.link(name, page), [row.note for row in cut])
        anchors: dict[Place, str] = {}
        if module:
            anchors = {place: name for name, place in module.defined.items()}
            shown = code.lines(source, self.names.links(page), anchors)
        else:
            shown = code.lines(source, language="cuda")
        out = [self._title(page)]
        for row in cut:
            if row.heading:
                out.append(f'<h2 id="L{row.line}h">{html.escape(row.heading)}</h2>')
            lines = _without_blanks([(n, shown[n - 1]) for n in row.code])
            out += self._row(row.line, row.note, lines, notes, opening=row is cut[0])
            inside = [a for (n, _), a in anchors.items() if n in row.code]
            title = page.title + (f": {inside[0]}" if inside and row is not cut[0] else "")
            if row.note or inside:
                where = f"#{inside[0]}" if inside and row is not cut[0] else f"#L{row.line}"
                said = f"{words_only(row.note)} {' '.join(inside)}"
                self.index.append((title, page.href + where, said))
        self.typeset += notes.typeset
        self.left += [f"{page.name}: {line.strip()}" for line in notes.left]
        return "\n".join(out)

    @staticmethod
    def _row(
        line: int, note: str, lines: list[str], notes: Notes, opening: bool
    ) -> list[str]:  # fmt: skip
        """A row; of a module's own docstring one for each session or drawing, on the right."""
        beside = "\n".join(lines)
        right = f'<pre class="code">{beside}</pre>' if beside.strip() else ""
        out: list[str] = []
        left = sessions = ""

        def flush(beside: str) -> None:
            if left or beside:
                place = "" if out else f' id="L{line}"'
                out.append(
                    f'<section class="row"{place}><div class="note{"" if left else " empty"}">'
                    f'<div class="stay">{left}</div></div><div class="beside">'
                    f'<div class="stay">{beside}</div></div></section>'
                )

        parts = notes.parts(note)
        for number, part in enumerate(parts):
            before_drawing = [after.kind for after in parts[number + 1 : number + 2]] == ["drawing"]
            if opening and part.kind in ("session", "drawing"):
                sessions += part.html
                continue
            if sessions or (opening and before_drawing):
                flush(sessions)  # a drawing stands beside the paragraph before it
                left = sessions = ""
            left += part.html
        if sessions:
            flush(sessions)
            left = ""
        flush(right)
        return out

    def link(self, name: str, page: Page) -> str:
        """The address of what is named in words: a file, or something in code; "" if unknown."""
        if name.endswith((".py", ".md", ".cu")):
            name, room = name.removeprefix("minimixer/"), page.name.rpartition("/")[0]
            for full in (f"{room}/{name}", name, f"examples/{name}", f"{ESSAYS}/{name}"):
                if full.lstrip("/") in self.known:
                    return self.known[full.lstrip("/")]
            same = [other for other in self.pages if other.name.endswith(f"/{name}")]
            nearest = [other.href for other in same if other.part == same[0].part]
            return nearest[0] if len(nearest) == 1 else ""  # the path before the appendices
        if name.endswith("/"):
            return self.known.get(f"{name}__init__.py") or self.known.get(f"{name}README.md", "")
        if name.startswith("Task "):
            return self.known.get("docs/tasks/README.md", "")
        name = name.removesuffix("()").removeprefix("minimixer.")
        if not name.replace(".", "").replace("_", "").isalnum():
            return ""
        here = dotted(page.name) if page.name.endswith(".py") else ""
        for full in (f"{here}.{name}", name):
            found = self.names.find(full.lstrip("."))
            if found and (found[1] or "." in full):
                return self.names.href(found, page)
        return ""

    # ---- essays, and the start ------------------------------------------------------------------

    def _essay(self, page: Page) -> str:
        essay = Essay(page.file, lambda name: self.link(name, page))
        inside = essay.html()
        for name, file in essay.figures.items():
            self.files[name] = file.read_bytes()
        self.index.append((page.title, page.href, words_only(text_of(page.file))))
        self.typeset += essay.formulas
        return f'<article class="essay"><p class="role">{ROLES[page.kind]}</p>{inside}</article>'

    def _start(self) -> str:
        out = [
            '<article class="essay start"><h1>minimixer</h1>',
            "<p>MLP-Mixer from scratch, in NumPy and CuPy, as a book: notes on the left, code on "
            "the right, and all of the code is here. Names in code lead to where they are defined. "
            "Read the path from its first page; the appendices are there to look things up, and "
            "the machinery makes the same fast.</p>",
        ]
        if self.beside:
            out.append("<p>Essays stand between the pages. These go with them:</p><ul>")
            out += [f'<li><a href="{page.href}">{page.says}</a></li>' for page in self.beside]
            out.append("</ul>")
        number = 0
        for part, heading in PARTS.items():
            items = []
            for page in self.pages:
                if page.part == part:
                    number += page.kind != "essay"
                    label = str(number) if page.kind != "essay" else "essay"
                    items.append(
                        f'<li class="{page.kind}"><span class="number">{label}</span>'
                        f'<a href="{page.href}">{html.escape(page.title)}</a>'
                        + (f"<span>{html.escape(page.says)}</span>" if page.kind != "essay" else "")
                        + "</li>"
                    )
            if items:
                out.append(f"<h2>{heading}</h2><ol>{''.join(items)}</ol>")
        return "\n".join([*out, "</article>"])

    # ---- around them ----------------------------------------------------------------------------

    def _title(self, page: Page) -> str:
        return (f'<header><p class="role">{ROLES[page.kind]}</p><h1>{html.escape(page.title)}</h1>'
                "</header>")  # fmt: skip

    def _write(self, file: str, title: str, body: str, number: int | None = None) -> None:
        before = after = None
        if number is not None:
            before = self.pages[number - 1] if number else None
            after = self.pages[number + 1] if number + 1 < len(self.pages) else None
        elif file == "index.html":
            after = self.pages[0]
        named = title if title == "minimixer" else f"{title} - minimixer"
        self.files[file] = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{html.escape(named)}</title>"
            '<link rel="stylesheet" href="style.css"><link rel="icon" href="data:,"></head>\n'
            f"<body>{_bar(before, after)}\n<main>\n{body}\n</main>\n{_foot(before, after)}\n"
            '<script src="index.js"></script><script src="search.js"></script></body></html>\n'
        ).encode()


def _without_blanks(lines: list[tuple[int, str]]) -> list[str]:
    """Code without the empty lines around it; two that follow each other are one."""
    kept = [text for _, text in lines]
    while kept and not kept[0].strip():
        kept.pop(0)
    while kept and not kept[-1].strip():
        kept.pop()
    return [t for i, t in enumerate(kept) if t.strip() or (i and kept[i - 1].strip())]


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
