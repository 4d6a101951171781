"""Pages in Markdown whose Python blocks are one session, and print what the page says they print.

A block of python that is followed by one of text prints exactly that; one that isn't prints
nothing. For docs/video.md and the essays of docs/book/.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(\w+)\n(.*?)```", flags=re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, what stands in it) of each fenced block."""
    return FENCE.findall(page)


def without_blocks(page: str) -> str:
    return FENCE.sub("", page)


def run_blocks(path: Path, monkeypatch, capsys) -> dict[str, Any]:
    """Run the page's session, in the repository's root, and compare; the names it leaves."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the page may add to it
    found = blocks(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for (language, block), (following, said) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            exec(compile(block, path.name, "exec"), names)
            assert capsys.readouterr().out == (said if following == "text" else "")
    return names
