"""Code as HTML: coloured by Pygments, names linked to their definitions, line by line."""

import html
import re
from typing import Any

from .names import Place

PROMPT = re.compile(r"(>>>|\.\.\.)( |$)")


def css_class(kind: Any) -> str:
    """Pygments' short name of a kind of token: "k" for keywords, "s" for strings."""
    from pygments.token import STANDARD_TYPES, Token

    while kind not in STANDARD_TYPES:
        kind = kind.parent
    return "" if kind is Token.Name or kind in Token.Punctuation else STANDARD_TYPES[kind]


def lines(
    source: str, links: dict[Place, str] | None = None, anchors: dict[Place, str] | None = None,
    language: str = "python",
) -> list[str]:  # fmt: skip
    """Each line of code as HTML. `links`: {place: address}; `anchors`: {place: id}."""
    from pygments.lexers import get_lexer_by_name

    links, anchors = links or {}, anchors or {}
    lexer: Any = get_lexer_by_name(language, stripnl=False)
    found, line, column = [""], 1, 0
    for _, kind, value in lexer.get_tokens_unprocessed(source):
        for number, part in enumerate(value.split("\n")):
            if number:
                found.append("")
                line, column = line + 1, 0
            if part:
                place = line, column
                found[-1] += _token(part, css_class(kind), links.get(place), anchors.get(place))
            column += len(part.encode())  # ast counts bytes
    return found


def _token(text: str, kind: str, link: str | None, anchor: str | None) -> str:
    shown = html.escape(text)
    if anchor:
        shown = f'<a class="here" href="#{anchor}">{shown}</a>'
        return f'<span class="{kind or "n"}" id="{anchor}">{shown}</span>'
    if link:
        shown = f'<a href="{html.escape(link)}">{shown}</a>'
    return f'<span class="{kind}">{shown}</span>' if kind else shown


def session(source: str) -> str:
    """What was typed, after >>>, and what was printed."""
    typed = [PROMPT.sub("", line) for line in source.split("\n") if PROMPT.match(line)]
    coloured = iter(lines("\n".join(typed)))
    shown = []
    for line in source.split("\n"):
        prompt = PROMPT.match(line)
        if prompt:
            shown.append(f'<span class="gp">{html.escape(prompt[0])}</span>{next(coloured)}')
        else:
            shown.append(f'<span class="go">{html.escape(line)}</span>')
    return '<pre class="session">{}</pre>'.format("\n".join(shown))
