r"""Formulas as sources have them, in plain text, and as a printed book has them.

Sources keep to one rule: a line that stands four spaces further in than its paragraph and has a
relation in it (=, <-, <, >>) is a formula; what follows two spaces is another one, or words about
it. So is a paragraph whose lines all begin with one. finding.py finds those within sentences.

    x[m, i], x_i, w2    an index            x^2, w^T, e^-2v     a power, transposed
    x_hat, f'           a hat, a prime      a / b, sqrt(x)      a fraction, a root
    sum_k p[k]          a sum               a b                 a product: a space is enough
    sigma, Phi          Greek letters       dx, dgamma          gradients, d_x too
    S x n               sizes               variance, one_hot   words, those of WORDS
    d y / d x           the same as dy/dx

Brackets may hold a condition: [i = j] is 1 where it is met, else 0. Relations have spaces around
them; so out=x is Python. `python -m minimixer book --formulas` prints what was read as a formula.

A small reader makes LaTeX of that, and latex2mathml makes MathML of the LaTeX. No script runs.

>>> from minimixer.app.book.formulas import latex
>>> latex("dW[i, j] = sum_m x[m, i] dy[m, j]")
'{dW}_{i,j} = \\sum_{m} x_{m,i} \\, {dy}_{m,j}'
"""

import re
from functools import cache

GREEK = {
    name: f"\\{name}"
    for name in ("alpha", "beta", "gamma", "delta", "sigma", "phi", "Phi", "pi", "mu")
} | {"epsilon": r"\varepsilon"}
FUNCTIONS = {
    "log", "ln", "exp", "tanh", "max", "min", "erf", "gelu", "mean", "softmax", "LayerNorm", "MLP",
    "Beta",
}  # fmt: skip
WORDS = {
    "variance", "bias", "momentum", "strength", "smoothing", "loss", "lr", "decay", "std", "step",
    "target", "logits", "label", "weight", "rstd", "slope", "scale", "offset", "move", "inputs",
    "norm", "correction", "share", "shift", "rows", "columns", "groups", "eps", "one_hot", "fan_in",
    "weight_decay", "max_shift",
}  # fmt: skip
INDICES = {"label", "slope"}  # of more letters than three
WEAK = FUNCTIONS | WORDS | {"sum", "sqrt"}  # English too: no formula by themselves
BIG = {"sum": r"\sum", "integral": r"\int"}
RELATIONS = {
    "=": "=", "<-": r"\leftarrow", "+=": r"\mathrel{+}=", "->": r"\to", ">=": r"\geq",
    "<=": r"\leq", ">>": r"\gg", "<<": r"\ll", "<": r"\lt", ">": r"\gt", "~": r"\sim",
}  # fmt: skip
OPERATORS = {"+": "+", "-": "-", "*": r"\cdot", ".": r"\cdot", "...": r"\dots"}
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)"
    r"|(?P<name>[A-Za-z]+\d*(?:_[A-Za-z0-9]+)*(?:'(?!s\b))*)"
    r"|(?P<op><-|\+=|->|>=|<=|>>|<<|\.\.\.|(?<= )\.(?= )|[-+*/=<>~^()\[\],;|:])"
)


SIZES = re.compile(r"[A-Z\d)]\w* x (?:[A-Z\d(]\w*|n\b)|\b[kmn] x [kmn]\b")
# After these, and not only after an operator, may stand a number: log 2, 1 ... 2, (x, 2).
SIGNED = re.compile(r"(?:\\, )?\\text|\\dots|[,:;]$")


class NoFormulaError(ValueError):
    """Something else is meant."""


@cache
def name(word: str) -> str:
    """LaTeX of a name; NoFormulaError if it is a word."""
    bare = word.rstrip("'")
    primes = word[len(bare) :]
    base, *subs = [bare] if bare in WORDS else bare.split("_")
    if base == "d" and subs and subs[0] != "hat":  # d_x, as code has it: dx
        return f"{{d{name('_'.join(subs))}}}{primes}"
    found = re.fullmatch(r"(d?)([A-Za-z_]+?)(\d{0,2})", base)
    if found is None:
        raise NoFormulaError(word)
    d, letter, number = found.groups()
    if base == "do":
        raise NoFormulaError(word)
    if d and not (len(letter) == 1 or letter in GREEK or letter in WORDS | {"mean"}):
        d, letter = "", d + letter
    indices = all(re.fullmatch("[i-n]{1,2}", sub) for sub in subs)
    if len(letter) == 1:
        core = letter
    elif letter in GREEK:
        core = GREEK[letter]
    elif letter in (FUNCTIONS if primes else FUNCTIONS | WORDS) and indices and not number:
        core = rf"\text{{{letter}}}"
    else:
        raise NoFormulaError(word)
    if subs[:1] == ["hat"]:
        core, subs = rf"\hat{{{core}}}", subs[1:]
    core = f"{{{d}{core}}}" if d or (len(core) > 1 and subs) else core
    if any(len(sub) > 3 and sub not in INDICES for sub in subs):
        raise NoFormulaError(word)
    below = number + ",".join(rf"\text{{{sub}}}" if sub in INDICES else sub for sub in subs)
    return core + (f"_{{{below}}}" if below else "") + primes


def word(factor: str) -> bool:
    """Does a factor, as LaTeX, begin with a whole word, but no function's name, and no matrix?"""
    found = re.match(r"(?:\\cdot |\\, )?\{?\\text\{(\w+)\}", factor)
    return found is not None and found[1] not in FUNCTIONS | {"weight"}


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
            ends = token == "|" and not (wanting or out[-1] == ",")
            if (token in ",:;" and not commas) or ends:
                break
            if token in RELATIONS or token in OPERATORS or token in ",:;":
                self.take()
                first = not out
                alone = token in ("-", "...", ":") or (first and token in RELATIONS)
                if wanting and not alone:
                    raise NoFormulaError(token)
                out.append((RELATIONS | OPERATORS | {mark: mark for mark in ",:;"})[token])
                wanting = token not in ("...", ":", ",", ";")
            elif token == "x" and not wanting and self.is_times():
                self.take()
                out.append(r"\times")
                wanting = True
            else:
                if self.is_number() and not wanting and not SIGNED.match(out[-1]):
                    raise NoFormulaError("a number stands before what it multiplies")
                factor = self.fraction()
                letters = not wanting and len(factor) == len(out[-1]) == 1
                beside = not wanting and out[-1] not in (",", ":", ";", r"\dots")
                if beside and (word(out[-1]) or word(factor)):
                    factor = rf"\cdot {factor}"  # else whole words would read as a sentence
                elif not (wanting or letters or factor.startswith(r"\sum")):
                    factor = rf"\, {factor}"  # a product: a thin space, but between letters
                out.append(factor)
                wanting = False
        if wanting and not commas:
            raise NoFormulaError("nothing follows")
        return " ".join(out)

    def is_times(self) -> bool:
        """Is this x between sizes, as in S x (B*C) or m x n?"""
        before, after = (self.tokens[i][1] if i < len(self.tokens) else "" for i in
                         (self.at - 1, self.at + 1))  # fmt: skip
        return bool(SIZES.fullmatch(f"{before} x {after}"))

    def is_number(self) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][0] == "number"

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
        if token == "[":
            return f"[{self.bracket('[', ']')}]{self.power()}", ""
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
            return f"{core}({inside}){self.power()}"
        return core

    def differential(self) -> bool:
        """Is it the d of d y / d x, above or below? For d x alone is a product."""
        here = self.at
        if here > 1 and self.tokens[here - 2][1] == "/":
            return self.peek() not in ("", *WEAK)
        try:
            self.factor()
            return [token for _, token, _ in self.tokens[self.at : self.at + 2]] == ["/", "d"]
        except NoFormulaError:
            return False
        finally:
            self.at = here

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
            times = self.factor()[0] if self.beside() and self.tokens[self.at][0] == "name" else ""
            return f"^{{{minus}{token}{times}}}"
        core = name(token)
        if self.peek() == "[" and self.beside():
            core = f"{core}_{{{self.bracket('[', ']')}}}"
        return f"^{{{minus}{core}}}"


# ---- from LaTeX to MathML -----------------------------------------------------------------------

GAP = '<mspace width="0.167em"/>'
# A minus that follows a bracket or a relation belongs to what comes after it.
SIGN = re.compile(
    r"(<mo[^>]*>(?:&#x0003D;|&#x00028;|&#x0005B;|&#x02190;|&#x0002C;)</mo>)<mo>(?=&#x02212;)"
)


@cache
def mathml(formula: str, display: bool = False) -> str:
    """MathML of LaTeX; `display`: sums have their index below."""
    from latex2mathml.converter import convert

    formula = formula.replace("'", "′")  # the font's stands high as it is
    formula = re.sub(r"\^(?:T\b|\{T\})", r"^{\\top}", formula)  # essays' transposed
    made = convert(formula, display="block" if display else "inline")
    made = made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    made = made.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>')
    made = made.replace(' stretchy="false">&#x0007C;', ' stretchy="false" lspace="0" rspace="0">|')
    made = made.replace("<mo>&#x02016;</mo>", '<mo stretchy="false" lspace="0" rspace="0">‖</mo>')
    made = re.sub("<mo>(?=&#x0002C;</mo><mo[^>]*>&#x00029;)", '<mo rspace="0">', made)  # (S,)
    made = made.replace("<mo>&#x02026;</mo>", "<mi>…</mi>")  # which asks for no room around it
    made = re.sub("</mfrac>(?=<m(?:frac|i|sub|sup))", f"</mfrac>{GAP}", made)  # else read as one
    made = re.sub(r"(<mi>(?:log|exp)</mi>)(?=<m(?!o|space))", rf"\1{GAP}", made)
    made = made.replace("<mo>&#x0005E;</mo>", "<mo>&#x002C6;</mo>")  # a hat made to sit on letters
    made = SIGN.sub(r'\1<mo form="prefix">', made)
    return made.replace('<math display="block">', '<math displaystyle="true">').replace(
        '<math display="inline">', "<math>"
    )
