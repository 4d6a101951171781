"""What the suite makes the package say: a list of its errors and warnings, to be compared.

    PYTHONPATH=NEW/tests python -m pytest -p messages --messages=FILE

in a tree, an old one too. FILE gets each distinct message of an error inside `pytest.raises` and
of a warning inside `pytest.warns`, sorted, one a line, with what varies from run to run masked.
`diff OLD.txt NEW.txt` shows what changed.
"""

import re
import tempfile
from pathlib import Path

import pytest

MASKS = {
    re.escape(tempfile.gettempdir()) + r"(/[^/\s:;,'\")]+)*/": "TMP/",
    r"\b0x[0-9a-f]{6,}\b": "ADDRESS",
    r"\b\d+(\.\d+)? ?(s|ms|seconds)\b": "TIME",
    r"\b(pid|process) \d+\b": r"\1 ID",
}
messages: set[str] = set()


def pytest_addoption(parser):
    parser.addoption("--messages", metavar="FILE", help="write there what errors and warnings say")


def pytest_configure(config):
    if config.getoption("--messages"):
        for context in (pytest.raises(Exception), pytest.warns(Warning)):
            listen(type(context), str(config.rootpath))


def listen(kind, root):
    """Let contexts of this kind note what they caught, when they are left."""
    leave = kind.__exit__

    def note_and_leave(self, error_type, error, trace):
        for caught in [error, *(warning.message for warning in getattr(self, "list", []))]:
            if caught is not None:
                text = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
                text = text.replace(root, "ROOT")
                for pattern, mask in MASKS.items():
                    text = re.sub(pattern, mask, text)
                messages.add(text)
        return leave(self, error_type, error, trace)

    kind.__exit__ = note_and_leave


def pytest_sessionfinish(session):
    file = session.config.getoption("--messages")
    if file:
        Path(file).write_text("".join(f"{m}\n" for m in sorted(messages)), encoding="utf-8")
