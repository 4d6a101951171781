r"""Formulas as sources have them, in plain text, and as a printed book has them.

Sources keep to one rule: a line that stands four spaces further in than its paragraph and has a
relation in it (=, <-, <, >>) is a formula; what follows two spaces is another one, or words about
it. Formulas are also found within sentences, where nothing else can be meant. What is written:

    x[m, i], x_i, w2    an index            x^2, w^T, e^(-x)    a power, transposed
    x_hat, f'           a hat, a prime      a / b, sqrt(x)      a fraction, a root
    sum_k p[k]          a sum               a b                 a product: a space is enough
    sigma, Phi          Greek letters       dx, dgamma          gradients: d and a letter

A small reader makes LaTeX of that, and latex2mathml makes MathML of the LaTeX. No script runs.

>>> from minimixer.app.book.formulas import latex, spans
>>> latex("dW[i, j] = sum_m x[m, i] dy[m, j]")
'{dW}_{i,j} = \\sum_{m} x_{m,i} \\, {dy}_{m,j}'
>>> [part for part, formula in spans("where x_hat = (x - mean) / sigma, as is usual") if formula]
['x_hat = (x - mean) / sigma']
"""

import re
from collections.abc import Iterator
from functools import cache

GREEK = {
    name: f"\\{name}"
    for name in ("alpha", "beta", "gamma", "delta", "sigma", "phi", "Phi", "pi", "mu")
} | {"epsilon": r"\varepsilon"}
FUNCTIONS = {"log", "exp", "tanh", "max", "min", "erf", "gelu", "mean", "softmax", "LayerNorm"}
WORDS = {
    "variance", "momentum", "strength", "smoothing", "loss", "lr", "decay", "std", "step", "target",
}  # fmt: skip
WEAK = FUNCTIONS | WORDS | {"sum", "sqrt"}  # English too: no formula by themselves
BIG = {"sum": r"\sum", "integral": r"\int"}
RELATIONS = {
    "=": "=", "<-": r"\leftarrow", "+=": r"\mathrel{+}=", "->": r"\to", ">=": r"\geq",
    "<=": r"\leq", ">>": r"\gg", "<<": r"\ll", "<": r"\lt", ">": r"\gt", "~": r"\approx",
}  # fmt: skip
OPERATORS = {"+": "+", "-": "-", "*": r"\cdot", "...": r"\dots"}
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)"
    r"|(?P<name>[A-Za-z]+\d*(?:_[A-Za-z0-9]+)*(?:'(?!s\b))*)"
    r"|(?P<op><-|\+=|->|>=|<=|>>|<<|\.\.\.|[-+*/=<>~^()\[\],|:])"
)


class NoFormulaError(ValueError):
    """Something else is meant."""


@cache
def name(word: str) -> str:
    """LaTeX of a name; NoFormulaError if it is a word."""
    bare = word.rstrip("'")
    primes = word[len(bare) :]
    base, *subs = bare.split("_")
    found = re.fullmatch(r"(d?)([A-Za-z]+?)(\d{0,2})", base)
    if found is None:
        raise NoFormulaError(word)
    d, letter, number = found.groups()
    if base == "do":
        raise NoFormulaError(word)
    if d and not (len(letter) == 1 or letter in GREEK):
        d, letter = "", d + letter
    if len(letter) == 1:
        core = letter
    elif letter in GREEK:
        core = GREEK[letter]
    elif letter in FUNCTIONS | WORDS and not (number or subs):
        core = rf"\text{{{letter}}}"
    else:
        raise NoFormulaError(word)
    if subs[:1] == ["hat"]:
        core, subs = rf"\hat{{{core}}}", subs[1:]
    core = f"{{{d}{core}}}" if d or (len(core) > 1 and subs) else core
    below = number + ",".join(subs)
    if any(len(sub) > 3 for sub in subs):
        raise NoFormulaError(word)
    return core + (f"_{{{below}}}" if below else "") + primes


def latex(text: str, fractions: bool = True) -> str:
    """LaTeX of a formula. `fractions`: with a line between above and below, for formulas that are
    set off; else with a slash. NoFormulaError."""
    return Reader(text, fractions).all()


class Reader:
    """From left to right; `expression` is factors, operators and relations in a row."""

    def __init__(self, text: str, fractions: bool):
        self.fractions, self.at = fractions, 0
        self.depth = 0  # of brackets: within them, too, fractions have a slash
        self.tokens: list[tuple[str, str, bool]] = []  # kind, text, does a space stand before it?
        position, spaced = 0, True
        while position < len(text):
            found = TOKEN.match(text, position)
            if found is None:
                raise NoFormulaError(text)
            kind = str(found.lastgroup)
            if kind != "space":
                self.tokens.append((kind, found[0], spaced))
            spaced, position = kind == "space", found.end()

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise NoFormulaError(f"{wanted or 'more'} is missing")
        self.at += 1
        return token

    def beside(self) -> bool:
        """Does the next token touch the one before it?"""
        return self.at < len(self.tokens) and not self.tokens[self.at][2]

    def all(self) -> str:
        result = self.expression()
        if self.peek():
            raise NoFormulaError(self.peek())
        return result

    def expression(self, commas: bool = False) -> str:
        out: list[str] = []
        wanting = True  # wanting: an operator has nothing after it yet
        while (token := self.peek()) not in ("", ")", "]"):
            if (token in ",:" and not commas) or (token == "|" and not wanting):
                break
            if token in RELATIONS or token in OPERATORS or token in ",:":
                self.take()
                first = not out
                alone = token in ("-", "...", ":") or (first and token in RELATIONS)
                if wanting and not alone:
                    raise NoFormulaError(token)
                out.append((RELATIONS | OPERATORS | {",": ",", ":": ":"})[token])
                wanting = token not in ("...", ":", ",")
            elif token == "x" and not wanting and self.is_times():
                self.take()
                out.append(r"\times")
                wanting = True
            else:
                factor = self.fraction()
                letters = not wanting and len(factor) == len(out[-1]) == 1
                if not (wanting or letters or factor.startswith(r"\sum")):
                    factor = rf"\, {factor}"  # a product: a thin space, but between letters
                out.append(factor)
                wanting = False
        if wanting and not commas:
            raise NoFormulaError("nothing follows")
        return " ".join(out)

    def is_times(self) -> bool:
        """Is this x between sizes, as in S x (B*C)?"""
        before, after = (self.tokens[i][1] if i < len(self.tokens) else "" for i in
                         (self.at - 1, self.at + 1))  # fmt: skip
        return bool(re.match(r"[A-Z\d)]", before) and re.match(r"[A-Z\d(]", after))

    def fraction(self) -> str:
        above, bare = self.factor()
        while self.peek() == "/":
            self.take()
            below, bare_below = self.factor()
            if self.fractions and not self.depth:
                above = rf"\frac{{{bare or above}}}{{{bare_below or below}}}"
            else:
                above = f"{above}/{below}"
            bare = ""
        return above

    def factor(self) -> tuple[str, str]:
        """A factor, and the same without its brackets if it has any."""
        kind, token, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", True)
        if token == "|":
            return f"|{self.bracket('|', '|')}|{self.power()}", ""
        if token == "(":
            inside = self.bracket("(", ")")
            power = self.power()
            return f"({inside}){power}", "" if power else inside
        if kind == "number":
            self.take()
            times = ""
            if self.beside() and self.tokens[self.at][0] == "name":
                times, _ = self.factor()  # 2h
            if "e" in token:
                digits, _, exponent = token.partition("e")
                token = rf"{digits} \cdot 10^{{{int(exponent)}}}"
            return token.replace(",", "{,}") + self.power() + times, ""
        if kind != "name":
            raise NoFormulaError(token or "nothing follows")
        self.take()
        return self.named(token), ""

    def named(self, token: str) -> str:
        base, _, below = token.partition("_")
        if base in BIG:
            core = BIG[base] + (f"_{{{below}}}" if below else "")
            core += self.power()
            terms = [self.fraction()]
            ends = ("", *RELATIONS, *OPERATORS, ")", "]", ",", "/", "|")
            while self.peek() not in ends:
                terms.append(self.fraction())
            product = r" \, ".join(terms)
            return f"{core} {product}"
        if token == "sqrt":
            if self.peek() == "(" and self.beside():
                return rf"\sqrt{{{self.bracket('(', ')')}}}"
            return rf"\sqrt{{{self.factor()[0]}}}"
        if token == "d" and not self.beside() and self.differential():
            return f"d{self.factor()[0]}"
        core = name(token)
        if token == "E" and self.peek() == "[" and self.beside():
            return f"E[{self.bracket('[', ']')}]" + self.power()
        if self.peek() == "[" and self.beside():
            core += f"_{{{self.bracket('[', ']')}}}".replace(" , ", ",")
        core += self.power()
        if self.peek() == "(" and self.beside():
            inside = self.bracket("(", ")")
            return f"{core}({inside})"
        return core

    def differential(self) -> bool:
        """Is it the d of d x, beside a letter or a Greek one?"""
        kind, token, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", True)
        return kind == "name" and token not in WEAK

    def bracket(self, left: str, right: str) -> str:
        self.take(left)
        self.depth += 1
        inside = self.expression(commas=True)
        self.depth -= 1
        self.take(right)
        return inside

    def power(self) -> str:
        if self.peek() != "^":
            return ""
        self.take()
        if self.peek() == "(":
            return f"^{{{self.bracket('(', ')')}}}"
        minus = self.take() if self.peek() == "-" else ""
        if self.peek() == "T":
            self.take()
            return r"^{\top}"
        kind, token, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", True)
        if kind not in ("name", "number"):
            raise NoFormulaError("a power is missing")
        self.take()
        if kind == "number":
            return f"^{{{minus}{token}}}"
        core = name(token)
        if self.peek() == "[" and self.beside():
            core = f"{core}_{{{self.bracket('[', ']')}}}"
        return f"^{{{minus}{core}}}"


# ---- formulas among words -----------------------------------------------------------------------

STRONG = re.compile(
    r"_|\^|\[|'|=|<-|->|>>|(?<![A-Za-z])d?(?:" + "|".join(GREEK) + r")(?![a-z])"
    r"|(?<![A-Za-z])d[A-Z]?[a-zA-Z]\d?(?![A-Za-z])|(?<![A-Za-z])[A-Za-z]\d(?!\d)"
)


def spans(text: str, letters: str = "", bold: bool = False) -> Iterator[tuple[str, str | None]]:
    """The text in parts: (words, None) or (a formula, its LaTeX). `letters`: those that are
    formulas by themselves. `bold`: the text is set off, where "a" is no article."""
    tokens, position = [], 0
    while position < len(text):
        found = TOKEN.match(text, position)
        kind, end = (str(found.lastgroup), found.end()) if found else ("", position + 1)
        if kind == "name":
            try:
                name(text[position:end]) if text[position:end].split("_")[0] not in (
                    *BIG, "sqrt") else None  # fmt: skip
            except NoFormulaError:
                kind = ""
        tokens.append((kind, position, end))
        position = end
    words, number = 0, 0  # where words begin that were not yielded yet
    while number < len(tokens):
        end = _longest(text, tokens, number, letters, bold)
        if end:
            start, stop = tokens[number][1], tokens[end - 1][2]
            if start > words:
                yield text[words:start], None
            yield text[start:stop], latex(text[start:stop], bold)
            words, number = stop, end
        else:
            number += 1
    if words < len(text):
        yield text[words:], None


def _longest(
    text: str, tokens: list[tuple[str, int, int]], number: int, letters: str, bold: bool
) -> int:
    """How far the longest formula goes that begins with this token; 0 if none does."""
    kind, start, _ = tokens[number]
    if kind in ("", "space") or (start and re.match(r"[\w.`\[\])/\"'-]", text[start - 1])):
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
        if not _meant(part, letters, bold):
            continue
        try:
            latex(part)
        except NoFormulaError:
            continue
        return end
    return 0


def _meant(part: str, letters: str, bold: bool) -> bool:
    """Does a formula look like this, and nothing else?"""
    names = re.findall(r"[A-Za-z]+", re.sub(r"\d+(?:\.\d+)?e[-+]?\d+", "0", part))
    if re.fullmatch(r"\d+\^-?\d+", part):
        return True
    if (
        not names
        or re.match(r",|->", part)
        or re.search(r"\b\d-d\b", part)
        or re.fullmatch(r"\([^()]*\)", part)
    ):
        return False
    if len(part) == 1:
        return part in letters
    if not bold and re.search(rf"^(?:[aAI]|{ENGLISH}) [\w(]|^{ENGLISH}$| [aAI]$", part):
        return False
    if not bold and not RELATED.search(part) and re.search(rf"(?:^| ){ENGLISH}$", part):
        return False
    if not STRONG.search(part) and not re.search(r"[A-Za-z)\d] ?[-+/*<>] ?[A-Za-z(\d]|\(", part):
        words = part.split()
        return len(words) == 2 and words[0].lstrip("-") in FUNCTIONS and len(words[1]) == 1
    return True


# Words that are formulas only beside an operator or a bracket.
ENGLISH = f"(?:{'|'.join(WORDS | {'erf', 'gelu', 'mean', 'softmax', 'LayerNorm', 'sum'})})"
RELATED = re.compile(r"=|<-|>>|<")
