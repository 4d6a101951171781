"""What a plain training step runs through: files, lines, and how often.

    python tests/what_runs.py                the plain code, which one reads
    python tests/what_runs.py auto           with the fast forms

Traces one step of README's training loop on the CPU, the thread that prepares batches included, the
second step that a model makes. For each file of the package in which a line ran: how many lines
did, of how many; how often a line was begun ("events"); calls. Then the sums, and what of them lies
outside of mathematics and model, and outside of the pages that minimixer/__init__ lists to be read.
"""

import ast
import os
import re
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "minimixer"
MATHEMATICS = {
    "engine/ops", "engine/more_ops", "engine/rearrange", "engine/more_rearrange", "engine/tensor",
    "engine/products", "engine/random", "engine/erf", "nn/loss", "nn/layer_norm", "nn/functional",
    "nn/layers", "model/images", "model/block", "model/mixer", "training/schedules",
    "training/optim", "training/data",
}  # fmt: skip


class Found(NamedTuple):
    """By file of the package, "engine/ops": lines that ran, events, calls; moves between files."""

    lines: dict[str, set[int]]
    events: Counter
    calls: Counter
    moves: int

    @property
    def whole(self) -> dict[str, int]:
        return {name: count(name) for name in self.lines}

    def outside(self, names: set[str]) -> int:
        """Events in other files than these."""
        return sum(n for name, n in self.events.items() if name not in names)

    def executed_outside(self, names: set[str]) -> int:
        """Lines that ran in other files than these."""
        return sum(len(lines) for name, lines in self.lines.items() if name not in names)


def count(name: str) -> int:
    return len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())


def pages() -> list[str]:
    """The files to be read, in their order: "engine/grad_mode" and so on."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source), clean=False) or ""
    return re.findall(r"^    (\w+/\w+)\.py ", text.split("Appendices")[0], flags=re.MULTILINE)


def trace(which: str = "reference") -> Found:
    """One step with kernels.use(which)."""
    from minimixer import AdamW, Mixer, data, kernels
    from minimixer import functional as F

    images, labels, *_ = data.load_mnist()
    model = Mixer(
        image_size=28, patch_size=7, in_channels=1, num_classes=10, num_blocks=4, hidden_dim=96,
        tokens_mlp_dim=32, channels_mlp_dim=256,
    )  # fmt: skip
    optimizer = AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    batches = data.Batches(images[:128], labels[:128], batch_size=128, max_shift=1)

    def step(epoch: int) -> None:
        for x, y in batches.epoch(epoch):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    lines, events, calls = defaultdict(set), Counter(), Counter()
    moves, last = 0, ""
    home, main = f"{PACKAGE}{os.sep}", threading.get_ident()

    def look(frame, event, _):
        nonlocal moves, last
        file = frame.f_code.co_filename
        if not file.startswith(home):
            return None
        name = file.removeprefix(home).removesuffix(".py").replace(os.sep, "/")
        if event == "line":
            lines[name].add(frame.f_lineno)
            events[name] += 1
        elif event == "call" and threading.get_ident() == main:
            calls[name] += 1
            moves, last = moves + (name != last), name
        return look

    kernels.use(which)
    try:
        step(0)
        threading.settrace(look)
        sys.settrace(look)
        step(1)
    finally:
        sys.settrace(None)
        threading.settrace(None)
        kernels.use("auto")
    return Found(dict(lines), events, calls, moves)


def main() -> None:
    found, path = trace(*sys.argv[1:2] or ["reference"]), set(pages())
    for name, events in found.events.most_common():
        ran, where = len(found.lines[name]), "" if name in path else "  (an appendix)"
        print(f"{name:22} {ran:4} of {count(name):4} lines, {events:6} events{where}")
    total = sum(found.events.values())
    print(
        f"{len(found.lines)} files, {sum(found.whole.values()):,} lines, of which "
        f"{sum(map(len, found.lines.values()))} ran, {found.executed_outside(path)} of them in "
        f"appendices; {found.outside(MATHEMATICS):,} of {total:,} events outside of mathematics "
        f"and model; {sum(found.calls.values()):,} calls, {found.moves} moves between files"
    )


if __name__ == "__main__":
    main()
