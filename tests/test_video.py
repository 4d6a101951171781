"""docs/video.md is true: links lead to the code that they quote, blocks print what it says.

`[`code`](file.py#L82)` is right while that code stands on line 82 and on no other; two codes are
the first and the last line, `#L82-L85`. After code has moved

    python tests/test_video.py --renew

writes the right numbers into the page, and says of which links the code is gone.
"""

import re
import sys

import pytest
from pages import ROOT, run_blocks, without_blocks

PATH = ROOT / "docs" / "video.md"
PAGE = PATH.read_text(encoding="utf-8")
TEXT = without_blocks(PAGE)
LINK = re.compile(r"\[((?:`[^`]+`|[^]`])*)\]\(([^)\s]+)\)")  # what is shown, and where it leads
LINKS = LINK.findall(TEXT)
TO_LINES = [link for link in LINKS if ".py#" in link[1]]
VERDICTS = ("**Shown by code.**", "**Shown by numbers of ours", "**Can't be shown here**, because")


def with_lines(shown: str, target: str) -> str:
    """`target` with the lines of the code that is shown; ValueError if it isn't on one line."""
    path = target.partition("#")[0]
    lines = (PATH.parent / path).read_text(encoding="utf-8").splitlines()
    numbers = []
    for code in re.findall(r"`([^`]+)`", shown):
        code = " ".join(code.split())  # a link may go on in the page's next line
        found = [number for number, line in enumerate(lines, 1) if code in line]
        if len(found) != 1:
            raise ValueError(f"{path}: `{code}` stands on lines {found}; quote what is on one line")
        numbers += found
    return f"{path}#" + "-".join(f"L{n}" for n in dict.fromkeys([numbers[0], numbers[-1]]))


def renewed(page: str) -> str:
    """The page with the right line numbers; it prints which links have none."""

    def renew(match: re.Match) -> str:
        shown, target = match.groups()
        if ".py#" in target:
            try:
                target = with_lines(shown, target)
            except ValueError as error:
                print(error)
        return f"[{shown}]({target})"

    return LINK.sub(renew, page)


@pytest.mark.parametrize("shown, target", TO_LINES)
def test_links_lead_to_the_code_that_they_show(shown, target):
    assert target == with_lines(shown, target), "python tests/test_video.py --renew writes this"


def test_a_link_to_another_line_is_noticed_and_renewed():
    moved = re.sub(r"#L\d+(-L\d+)?", "#L1", PAGE)
    assert len(TO_LINES) > 15 and renewed(moved) == PAGE
    for shown, target in TO_LINES:
        assert with_lines(shown, re.sub(r"#.*", "#L1", target)) != re.sub(r"#.*", "#L1", target)
    for nowhere in ("`no such code`", "`self`"):  # of the second there is too much
        with pytest.raises(ValueError, match="quote what is on one line"):
            with_lines(nowhere, "../minimixer/model/block.py#L1")


def test_files_and_figures_are_there_and_addresses_are_the_papers():
    assert sum(target.endswith(".png") for _, target in LINKS) == TEXT.count("![") > 0
    for _, target in LINKS:
        if target.startswith("https://"):
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target), target
        else:
            assert (PATH.parent / target.partition("#")[0]).is_file(), target
    assert PAGE.count("://") == sum("://" in target for _, target in LINKS)


def test_every_statement_has_one_answer_and_the_opening_counts_them():
    opening, *statements = re.split(r"^### ", TEXT, flags=re.MULTILINE)
    assert [int(s.partition(".")[0]) for s in statements] == [*range(1, len(statements) + 1)]
    answers = [[s.partition("\n\n")[2].startswith(v) for v in VERDICTS] for s in statements]
    assert all(sum(answer) == 1 for answer in answers)
    counts = [sum(column) for column in zip(*answers, strict=True)]
    said = re.findall(r"\b\d+\b", opening.split("\n\n")[1])
    assert [int(number) for number in said] == [len(statements), *counts]


def test_blocks_print_what_the_page_says(reference, monkeypatch, capsys):
    names = run_blocks(PATH, monkeypatch, capsys)
    assert names["transposed"].shape == (5, 10)


def test_the_page_is_short():
    assert len(re.findall(r"\S*\w\S*", PAGE)) <= 1300  # the lines of a table are no words


if __name__ == "__main__":
    if sys.argv[1:] != ["--renew"]:
        sys.exit("usage: python tests/test_video.py --renew")
    PATH.write_text(renewed(PAGE), encoding="utf-8", newline="\n")
