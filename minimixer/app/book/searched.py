"""What the search looks through: each page's words as a reader sees them, without marks.

search.js has the rest. It finds other forms of a word too, by how it begins; for what others call
by another name than the pages do, that name is added here, to the page which explains it.

>>> from minimixer.app.book.searched import seen, words_only
>>> words_only("Gives `y` back:\\n\\n    x -> y")
'Gives y back: x → y'
>>> seen("<h1>A page</h1><p>One, <em>two</em>.</p><ul><li>Three</li></ul>")
'One, two. Three'
"""

import html
import re

# {page: words that readers bring and that it has others for}
CALLED = {
    "docs/book/graph.md": "aliasing, in-place writes",
    "docs/book/views.md": "memory layout, strides",
    "docs/book/gradients.md": "reverse mode, chain rule",
    "docs/book/mixing.md": "receptive field, permuted patches",
    "engine/backward.py": "topological order",
    "model/mixer.py": "permuted patches, permutation invariance, complexity, FLOPs",
    "training/loop.py": "train loop, fit",
}
BLOCKS = r"</?(?:p|h\d|li|ul|ol|table|thead|tbody|tr|td|th|pre|div|img)\b[^>]*>"


def words_only(note: str) -> str:
    """A note in one line."""
    return " ".join(note.replace("`", "").split()).replace(" -> ", " → ")


def seen(page: str) -> str:
    """The words of an essay's HTML, without its title and the formulas that are set off."""
    left = re.sub(r'<h1.*?</h1>|<div class="formulas.*?</div>', " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]*>", "", re.sub(BLOCKS, " ", left))).split())


def called(page: str, words: str) -> str:
    """The same words, and after them what others call what the page explains."""
    return f"{words} ({CALLED[page]})" if page in CALLED else words
