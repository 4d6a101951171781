"""Essays, in Markdown, as HTML; and the figures beside them.

Formulas stand between $ or between lines of $$, and are LaTeX. Links to other essays lead to their
pages, as do names of modules in `backticks`; a link to what is not in the book is only its words,
and says that it is in the repository.
"""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import code
from .formulas import mathml
from .notes import OUTSIDE


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub has it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


class Essay:
    """One essay. `figures`: {name in the site: file}, filled as they are met."""

    def __init__(self, file: Path, link: Callable[[str], str]):
        self.file, self.link = file, link
        self.figures: dict[str, Path] = {}
        self.outside = False  # does the link at hand lead out of the book?
        self.headings: list[tuple[str, str]] = []
        self.set_off: list[str] = []  # formulas
        self.among_words: list[str] = []

    def html(self, text: str) -> str:
        """Of the text of its file, or of a part; what is said to authors is left out."""
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin

        text = re.sub(r"\nBefore: \S+\n", "\n", text, count=1)
        text = re.split(r"^How they are written: ", text, flags=re.MULTILINE)[0]
        reader = MarkdownIt("commonmark", {"html": False}).enable("table").use(
            dollarmath_plugin, renderer=self._formula, allow_digits=False
        )  # fmt: skip
        tokens = reader.parse(text)
        for number, token in enumerate(tokens):
            if token.type == "heading_open":
                heading = re.sub(r"[`*$]", "", tokens[number + 1].content)
                token.attrSet("id", slug(heading))
                self.headings.append((heading, slug(heading)))
            for child in token.children or []:
                self._inline(child)
        rules: Any = reader.renderer
        rules.rules |= {"fence": self._fence, "code_inline": self._name, "text": self._text}
        rules.rules["link_close"] = lambda tokens, n, *_: f"</a>{tokens[n].meta.get('after', '')}"
        return str(reader.renderer.render(tokens, reader.options, {}))

    def _formula(self, text: str, options: dict[str, Any]) -> str:
        if options["display_mode"]:
            self.set_off.append(text.strip())
            return f'<div class="formulas centred">{mathml(text.strip(), True)}</div>'
        self.among_words.append(text)
        return mathml(text)

    def _inline(self, token: Any) -> None:
        """Links and pictures of one sentence lead to where the site has them."""
        if token.type == "image":
            source = self.file.parent / str(token.attrGet("src"))
            if source.is_file() and source.resolve().is_relative_to(self.file.parent.resolve()):
                self.figures[source.name] = source
                token.attrSet("src", source.name)
            else:
                raise ValueError(f"{self.file}: there is no picture {token.attrGet('src')}")
        if token.type == "link_open":
            target, _, anchor = str(token.attrGet("href")).partition("#")
            href = self.link(target) if target else ""
            if href or not target:
                token.attrSet("href", href + (f"#{anchor}" if anchor else ""))
            else:  # not in the book
                del token.attrs["href"]
            self.outside = "href" not in token.attrs
        if token.type == "link_close" and self.outside:
            token.meta["after"] = OUTSIDE

    def _fence(self, tokens: Any, number: int, *_: Any) -> str:
        token = tokens[number]
        if token.info.strip() == "python":
            inside = "\n".join(code.lines(token.content.strip("\n")))
            return f'<pre class="session">{inside}</pre>'
        return f'<pre class="printed">{html.escape(token.content.rstrip())}</pre>'

    def _text(self, tokens: Any, number: int, *_: Any) -> str:
        """Words, the names of files in them linked; but within a link there is no other."""
        shown = html.escape(tokens[number].content, quote=False)
        inside = sum(t.nesting for t in tokens[:number] if t.type.startswith("link_"))
        if inside:
            return shown
        return re.sub(
            r"(?<![\w/])(?:\w+/)+\w+\.py\b",
            lambda m: f'<a href="{self.link(m[0])}">{m[0]}</a>' if self.link(m[0]) else m[0],
            shown,
        )

    def _name(self, tokens: Any, number: int, *_: Any) -> str:
        name = tokens[number].content
        shown, href = f"<code>{html.escape(name)}</code>", self.link(name)
        return f'<a href="{html.escape(href)}">{shown}</a>' if href else shown
