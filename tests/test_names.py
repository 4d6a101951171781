"""Names from outside: whatever they hold, what is shown is one line of visible characters."""

import csv
import io
import os
import shutil
import subprocess
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimixer.training.names import command, distinct, escaped, for_picture, printable

anything = st.text(st.characters(exclude_categories=()), max_size=60)  # half characters, too


@pytest.mark.parametrize("name, shown", [
    ("plain name-1_(2).jpg", "plain name-1_(2).jpg"),
    ("../x", "../x"), ("-rf", "-rf"), ("C:\\pictures", "C:\\pictures"), ("5$", "5$"),
    ("Käse 猫 שלום नमस्ते 🦊", "Käse 猫 שלום नमस्ते 🦊"),
    ("a\x1b[2J\x07", r"a\x1b[2J\x07"), ("two\nlines\r", r"two\nlines\r"),
    (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"), ("\ud800", r"\ud800"),
    ("cat\u202egpj.exe", r"cat\u202egpj.exe"), ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
    ("a\u2028b\x85", r"a\u2028b\x85"), ("a\xa0b\u3164", r"a\xa0b\u3164"),
    ("", "''"), (" ", r"\x20"), ("   ", r"\x20 \x20"), (" a ", r"\x20a\x20"),
    ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + r"\u0301" * 2), ("\u0301e", r"\u0301e"),
    (7, "7"), (None, "None"),
])  # fmt: skip
def test_what_is_not_plainly_visible_is_written_out(name, shown):
    assert printable(name) == shown


@given(anything, st.integers(5, 80))
def test_one_visible_line_of_a_bounded_length(name, most):
    shown = printable(name, most)
    assert 0 < len(shown) <= most and len(shown.splitlines()) == 1 and shown.isprintable()
    assert shown.strip() == shown and shown.encode()
    assert shown == printable(shown, most) or unicodedata.category(shown[0]) in ("Mn", "Me")
    assert "$" not in for_picture(name, most).replace(r"\$", "")


def test_long_names_lose_their_middle():
    assert printable("a" * 500 + "b" * 500) == "a" * 100 + "…" + "b" * 99
    assert printable("x" * 201) != printable("x" * 200) == "x" * 200
    assert len(printable("\x1b" * 10**7)) == 200


@given(st.lists(st.one_of(anything, st.sampled_from(["a", "a [1]", "\x1b", "\\x1b", " "]))))
def test_names_side_by_side_stay_apart(found):
    shown = distinct(found, most=9)
    assert len(set(shown)) == len(shown) == len(found)
    assert all(a == b or a.startswith(b) for a, b in zip(shown, (printable(n, 9) for n in found),
                                                         strict=True))  # fmt: skip


@given(anything)
def test_a_table_keeps_all_of_a_name(name):
    file = io.StringIO()
    csv.writer(file).writerow([escaped(name), "next"])
    text = file.getvalue().encode().decode()
    assert text.count("\n") == 1
    read = next(csv.reader([text]))[0]
    assert read.encode("latin-1", "backslashreplace").decode("unicode_escape") == name


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda word: b"\0" not in word)))
def test_a_command_means_the_same_to_a_shell(words):
    line = command(map(os.fsdecode, words))
    assert line.isprintable()
    found = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], stdout=subprocess.PIPE)
    assert found.stdout == b"".join(word + b"\0" for word in words or [b""])


def test_pictures_of_any_name():
    """No formula, no warning about letters that the font lacks, and no failure."""
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(4, 3))
    axes = figure.subplots()
    hard = [
        "$x$", "$\\frac{", "\\", "$", "5$ or 7$", "a\x1b", "\udce9", "猫", "🦊", "\n", " ", "_^{",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes.set_xticks(range(len(hard)), [for_picture(name) for name in hard], rotation=90)
        axes.set_title(for_picture("".join(hard), 60))
        figure.savefig(io.BytesIO(), format="png")
    assert [label.get_text() for label in axes.get_xticklabels()][:4] == [
        r"\$x\$", r"\$\frac{", "\\", r"\$"
    ]  # fmt: skip
    assert for_picture("猫") in (r"\u732b", "猫")  # as this machine's fonts have it
