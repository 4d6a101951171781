"""Formulas among words: where one begins and ends in a sentence.

The longest run of names, numbers and operators that can be read is a formula, if it looks like one
and like nothing else: an index, a power, a Greek letter, a gradient or a relation is in it. Single
letters are formulas too, where they are no words of their own. What is set off has fewer words in
it, so that less is asked.

>>> from minimixer.app.book.finding import spans
>>> [part for part, formula in spans("where x_hat = (x - mean) / sigma, as is usual") if formula]
['x_hat = (x - mean) / sigma']
"""

import re
from collections.abc import Iterator

from .formulas import BIG, FUNCTIONS, GREEK, SIZES, TOKEN, WORDS, NoFormulaError, latex, name

STRONG = re.compile(
    r"_|\^|\[|'|=|<-|->|>>|(?<![A-Za-z])d?(?:" + "|".join(GREEK) + r")(?![a-z])"
    rf"|(?<![A-Za-z])d(?:{'|'.join(WORDS)})(?![a-z])|{SIZES.pattern}"
    r"|(?<![A-Za-z])d[A-Z]?[a-zA-Z]\d?(?![A-Za-z])|(?<![A-Za-z])[A-Za-z]\d(?!\d)"
)


Token = tuple[str, int, int]  # "name", "number", "op", "space" or "", first and last position


def spans(text: str, set_off: bool = False) -> Iterator[tuple[str, str | None]]:
    """The text in parts: (words, None) or (a formula, its LaTeX). `set_off`: it stands by itself,
    where "a" is no article."""
    tokens = list(_tokens(text))
    words, number = 0, 0  # where words begin that were not yielded yet
    while number < len(tokens):
        end = _longest(text, tokens, number, set_off)
        if end:
            start, stop = tokens[number][1], tokens[end - 1][2]
            if start > words:
                yield text[words:start], None
            yield text[start:stop], latex(text[start:stop], set_off)
            words, number = stop, end
        else:
            number += 1
    if words < len(text):
        yield text[words:], None


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        found = TOKEN.match(text, position)
        kind, end = (str(found.lastgroup), found.end()) if found else ("", position + 1)
        if kind == "name" and not _is_name(text[position:end]):
            kind = ""
        yield kind, position, end
        position = end


def _is_name(word: str) -> bool:
    if word.split("_")[0] in (*BIG, "sqrt"):  # sum_k
        return True
    try:
        name(word)
    except NoFormulaError:
        return False
    return True


def _longest(text: str, tokens: list[Token], number: int, set_off: bool) -> int:
    """How far the longest formula goes that begins with this token; 0 if none does."""
    kind, start, _ = tokens[number]
    if kind in ("", "space") or BEFORE.search(text[max(0, start - 2) : start]):
        return 0
    last = number
    while last < len(tokens) and tokens[last][0]:
        last += 1
    for end in range(last, number, -1):
        part = text[start : tokens[end - 1][2]]
        after = text[tokens[end - 1][2] :]
        if (
            part != part.strip() or part.endswith(",")
            or re.match(r"[\w(`/\[^\"]|-\w|\.\w|'(?!s\b)", after)
        ):  # fmt: skip
            continue
        if not _meant(part, text[:start], after, set_off):
            continue
        try:
            latex(part)
        except NoFormulaError:
            continue
        return end
    return 0


def _meant(part: str, before: str, after: str, set_off: bool) -> bool:
    """Does a formula look like this, and nothing else, between these words?"""
    names = re.findall(r"[A-Za-z]+", re.sub(r"\d+(?:\.\d+)?e[-+]?\d+", "0", part))
    if re.fullmatch(r"\d+\^-?\d+(?: [-+] \d+)?", part):
        return True
    if not set_off and re.match(RELATED, part):
        return False
    if re.search(r"\w=\w", part):  # an option of Python's
        return False
    if (
        not names
        or re.match(r",|->", part)
        or re.search(r"\b\d-d\b", part)
        or re.fullmatch(r"\([^()]*\)|\[[^=;]*\]|[SBLH]/\d\d", part)  # as in Mixer-B/16
        or (re.search(rf"\b{ENGLISH}\b", part) and "->" in part)  # what goes in, what comes out
    ):
        return False
    if len(part) == 1:  # no article, no second, no programming language
        if part == "a":
            return bool(re.match(r"[,;:)]|'s\b|\.?$|\. ", after))
        if part == "A":  # none within a sentence
            return bool(re.search(r"[a-z,;] $", before)) and not re.match(" name", after)
        return not (
            part == "I" or (part == "s" and re.search(r"\d $", before))
            or re.search("appendix $", before) or re.match(r"\+\+| library|'s speed", after)
        )  # fmt: skip
    if re.fullmatch(rf"{ENGLISH} [a-z]", part) and "_" in part:  # weight_decay w
        return True
    if not set_off and re.search(rf"^(?:[aAI]|{ENGLISH}) [\w(]|^{ENGLISH}$", part):
        return False
    if not set_off and re.search(r" [aAI]$", part) and re.match(r" \w", after):
        return False  # an article
    if not set_off and not RELATED.search(part) and re.search(rf"(?:^|[\w)] ){ENGLISH}$", part):
        return False
    if not STRONG.search(part) and not JOINED.search(part):
        words = part.split()
        return len(words) == 2 and words[0].lstrip("-") in FUNCTIONS and len(words[1]) == 1
    return True


# Words that are formulas only beside an operator or a bracket.
ENGLISH = f"(?:{'|'.join(WORDS | {'erf', 'gelu', 'mean', 'softmax', 'LayerNorm', 'sum'})})"
BEFORE = re.compile(r"[\w.`\[\])/\"'-]$|\w[(=]$")  # after these it would be half of something
JOINED = re.compile(r"[A-Za-z)\d] ?[-+/*<>] ?[A-Za-z(\d.]|\(| \. ")
RELATED = re.compile(r"=|<-|>>|<|>=|\+=")
