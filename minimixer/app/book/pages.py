"""The pages of the site: a row for each note and its code.

Everything is made in memory first, so that an error leaves nothing half written.
"""

import html
import json
import re
from importlib import resources
from pathlib import Path

from ..draw import load_models
from ..draw.static import page_files
from . import code, frame, tasks
from .cut import rows
from .essays import Essay
from .names import Names, Place, dotted
from .notes import Notes, Part
from .order import ESSAYS, PACKAGE, QUESTIONS, ROLES, Page, book, rooms, text_of
from .searched import called, seen, words_only

COLUMN = 84  # letters of code in half a screen
SHIPPED = ("style.css", "search.js", "math.woff2", "math.txt")


class Site:
    """All files of the site, {name: bytes}, made by `build`; and what was found on the way."""

    def __init__(self, package: Path = PACKAGE):
        self.package, self.pages = package, book(package)
        self.names = Names(self.pages)
        self.files: dict[str, bytes] = {}
        self.index: list[tuple[str, str, str]] = []  # title, address, text
        # Formulas as they stand in a page and as LaTeX: those that are set off, and the others.
        self.set_off: list[tuple[str, str, str]] = []
        self.among_words: list[tuple[str, str, str]] = []
        self.left: list[str] = []  # lines that are set off with a relation in them, but as text
        self.known = {page.name: page.href for page in self.pages}
        self.tasks = self.known.get(tasks.PAGE, "")  # an address
        if self.tasks:
            for task in tasks.TASKS:
                self.known[f"Task {task.number}"] = f"{self.tasks}#{tasks.anchor(task)}"

    def build(self) -> dict[str, bytes]:
        order = [None, *self.pages, None]
        for before, page, after in zip(order, self.pages, order[2:], strict=False):
            body = self._essay(page) if page.file.suffix == ".md" else self._module(page, after)
            self.files[page.href] = frame.whole(page.title, body, before, after)
        start = frame.start(self.pages, rooms(self.package), self._questions())
        self.files["index.html"] = frame.whole("", start, after=self.pages[0])
        self.files["index.js"] = f"const INDEX = {json.dumps(self.index)};\n".encode()
        for name in SHIPPED:
            self.files[name] = (resources.files(__package__) / name).read_bytes()
        for name, data in page_files(load_models(["digits"]), "../index.html").items():
            self.files[f"draw/{name}"] = data
        return self.files

    # ---- modules --------------------------------------------------------------------------------

    def _module(self, page: Page, after: Page | None) -> str:
        source, module = text_of(page.file), self.names.modules.get(dotted(page.name))
        cut = rows(source, module.tree if module else None)
        notes = Notes(lambda name: self.link(name, page))
        anchors: dict[Place, str] = {}
        if module:
            anchors = {place: name for name, place in module.defined.items()}
            shown = code.lines(source, self.names.links(page), anchors)
        else:
            shown = code.lines(source, language="cuda")
        out = [frame.title(page, self.pages)]
        for row in cut:
            if row.heading:
                out.append(f'<h2 id="L{row.line}h">{notes.prose(row.heading)}</h2>')
            lines = _without_blanks([(n, shown[n - 1]) for n in row.code])
            out += self._row(row.line, row.note, lines, notes, opening=row is cut[0])
            if row is cut[0] and after and after.kind == "essay":  # which no module names
                essay = f'<a href="{after.href}">{html.escape(after.title)}</a>, an essay; then '
                out = [part.replace("Next: ", f"Next: {essay}", 1) for part in out]
            inside = [name for (line, _), name in anchors.items() if line in row.code]
            said = f"{words_only(row.note)} {' '.join(inside)}".strip()
            if row is cut[0]:
                said = called(page.name, said)
            if inside and row is not cut[0]:
                self.index.append((f"{page.title}: {inside[0]}", f"{page.href}#{inside[0]}", said))
            elif row.note:
                self.index.append((page.title, f"{page.href}#L{row.line}", said))
        if self.tasks:
            out.append(tasks.resting_on(page, self.tasks))
        self._count(page, notes)
        self.left += [f"{page.name}: {line.strip()}" for line in notes.left]
        return "\n".join(out)

    def _count(self, page: Page, notes: Notes) -> None:
        self.set_off += [(page.name, *formula) for formula in notes.set_off]
        self.among_words += [(page.name, *formula) for formula in notes.among_words]

    @staticmethod
    def _row(
        line: int, note: str, lines: list[str], notes: Notes, opening: bool
    ) -> list[str]:  # fmt: skip
        """A row; of a module's own docstring one for each session or drawing, on the right, or all
        of it above the code."""
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
        if opening and _is_long(parts, len(lines)):
            inside = "".join(part.html for part in parts)
            out.append(f'<section class="opening" id="L{line}">{inside}</section>')
            flush(right)
            return out
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
        if name in self.known:
            return self.known[name]
        name = name.removesuffix("()").removeprefix("minimixer.")
        if not name.replace(".", "").replace("_", "").isalnum():
            return ""
        here = dotted(page.name) if page.name.endswith(".py") else ""
        for full in (f"{here}.{name}", name):
            found = self.names.find(full.lstrip("."))
            if found and (found[1] or "." in full):
                return self.names.href(found, page)
        return ""

    # ---- essays ---------------------------------------------------------------------------------

    def _questions(self) -> str:
        """The table of them, for the start; "" without the repository."""
        page = next((page for page in self.pages if page.name == QUESTIONS), None)
        if page is None:
            return ""
        essay = Essay(page.file, lambda name: self.link(name, page))
        table = re.search(r"^\| question \|.*(?:\n\|.*)+", text_of(page.file), re.MULTILINE)
        inside = essay.html(table[0] if table else "")
        self.among_words += [("index", text, text) for text in essay.among_words]
        return inside

    def _essay(self, page: Page) -> str:
        essay = Essay(page.file, lambda name: self.link(name, page))
        inside = essay.html(text_of(page.file))
        for name, file in essay.figures.items():
            self.files[name] = file.read_bytes()
        if page.name == tasks.PAGE:
            notes = Notes(lambda name: self.link(name, page))
            inside += tasks.statements(notes)
            self._count(page, notes)
            for task in tasks.TASKS:
                named, address = f"Task {task.number}", f"#{tasks.anchor(task)}"
                title = html.escape(task.title, quote=False)  # as Markdown does
                inside = inside.replace(f"<td>{title}<", f'<td><a href="{address}">{title}</a><')
                said = words_only(tasks.asked(task))
                self.index.append((f"{named}: {task.title}", self.known[named], said))
        self.index.append((page.title, page.href, called(page.name, seen(inside))))
        self.set_off += [(page.name, text, text) for text in essay.set_off]
        self.among_words += [(page.name, text, text) for text in essay.among_words]
        return f'<article class="essay"><p class="role">{ROLES[page.kind]}</p>{inside}</article>'


def _is_long(parts: list[Part], lines: int) -> bool:
    """Is an opening so much longer than its code that it had better stand above, in two columns?
    Not if a line of its sessions would be too long for a column. `lines`: of code."""
    note = 0
    for part in parts:
        text = html.unescape(re.sub("<[^>]*>", "", part.html))
        if part.kind in ("session", "drawing"):
            if max(map(len, text.split("\n"))) > COLUMN:
                return False
            lines += text.count("\n") + 2
        else:
            note += len(text) // 60 + 3 * part.html.count("<tr>") + 2
    return 20 * lines + 250 < 26 * note < 1600  # pixels; its columns must fit a screen


def _without_blanks(lines: list[tuple[int, str]]) -> list[str]:
    """Code without the empty lines around it; two that follow each other are one."""
    kept = [text for _, text in lines]
    while kept and not kept[0].strip():
        kept.pop(0)
    while kept and not kept[-1].strip():
        kept.pop()
    return [t for i, t in enumerate(kept) if t.strip() or (i and kept[i - 1].strip())]
