"""The tasks on the site: what each asks, and links between it and the pages that it rests on.

A task's docstring, with which a student's file begins, says all of that: the paragraph in it that
begins with "Read:" names the pages. Solutions, hints and tests stay where they are.

>>> from minimixer.app.book.tasks import TASKS, read_first
>>> TASKS[4].title, read_first(TASKS[4])
('logsumexp', ['nn/loss.py'])
"""

import ast
import functools
import html
import re

from ..tasks.sheets import TASKS, Task, solved
from .notes import Notes
from .order import Page

PAGE = "docs/tasks/README.md"


@functools.cache
def asked(task: Task) -> str:
    """Its docstring, without the first line: number, title and minutes."""
    said = ast.get_docstring(ast.parse(solved(task))) or ""
    return said.partition("\n")[2].strip("\n")


def read_first(task: Task) -> list[str]:
    """The names of the pages that it rests on."""
    said = re.search(r"^Read: (.*?)(?:\n\n|\Z)", asked(task), re.MULTILINE | re.DOTALL)
    return re.findall(r"\bminimixer/([\w/]+\.py)\b", said[1] if said else "")


def anchor(task: Task) -> str:
    return f"task{task.number}"


def statements(notes: Notes) -> str:
    """HTML of all tasks, each with an anchor of its own."""
    out = []
    for task in TASKS:
        out.append(f'<h2 id="{anchor(task)}">{task.number}: {html.escape(task.title)}</h2>')
        out += [part.html for part in notes.parts(asked(task))]
    return "\n".join(out)


def resting_on(page: Page, address: str) -> str:
    """A line for the end of a page: the tasks that name it. `address` is that of all tasks."""
    found = [task for task in TASKS if page.name in read_first(task)]
    links = [
        f'<a href="{address}#{anchor(task)}">{task.number}, {html.escape(task.title)}</a>'
        for task in found
    ]
    if not links:
        return ""
    return f'<p class="tasks">Task{"s" * (len(links) > 1)} with this page: {"; ".join(links)}.</p>'
