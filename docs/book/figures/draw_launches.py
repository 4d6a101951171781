"""A training step in time: when Python asks for array operations, and when they are computed.

    python docs/book/figures/draw_launches.py           measures anew, into launches.json; then draw

Measured on the CPU with the plain code (kernels.use("reference")) and one thread (set
OPENBLAS_NUM_THREADS=1), where whoever asks also computes: so both add up to the whole, and each can
be seen. launches.json has the machine, the date and all times in microseconds; the picture is drawn
from it.
"""

import datetime
import json
import os
import platform
import time
from pathlib import Path

from picture import Picture, n

FILE = Path(__file__).with_name("launches.json")
SIZES = (1, 64)
STEPS = 60  # of which the fastest is kept: others were disturbed


def measure() -> None:
    import numpy as np

    from minimixer import AdamW, Mixer, Parameter, Tensor, kernels
    from minimixer import functional as F
    from minimixer.engine import autograd, backward

    def timed(function):
        def run(*inputs):
            start = time.perf_counter_ns()
            try:
                return function(*inputs)
            finally:
                spans.append((start, time.perf_counter_ns()))

        return run

    kernels.use("reference")
    autograd.run, backward.run_back = timed(autograd.run), timed(backward.run_back)  # type: ignore
    Parameter.accumulate_grad = timed(Parameter.accumulate_grad)  # type: ignore[method-assign]
    found = {}
    for size in SIZES:
        model = Mixer(28, patch_size=7, num_blocks=2, hidden_dim=64, tokens_mlp_dim=32,
                      channels_mlp_dim=256, in_channels=1, num_classes=10)  # fmt: skip
        optimizer = AdamW(model.parameters(), lr=1e-3)
        optimizer.update_ranges = timed(optimizer.update_ranges)  # type: ignore[method-assign]
        images = Tensor(np.zeros((size, 28, 28, 1), np.float32))
        best = None
        for _ in range(STEPS):
            spans: list[tuple[int, int]] = []
            start = time.perf_counter_ns()
            F.cross_entropy(model(images), np.zeros(size, int)).backward()
            optimizer.step()
            optimizer.zero_grad()
            total = (time.perf_counter_ns() - start) / 1000
            if best is None or total < best["total"]:
                moments = [[round((t - start) / 1000, 1) for t in span] for span in spans]
                best = {"total": round(total, 1), "computing": moments}
        found[str(size)] = best
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}",
    }
    text = json.dumps({**about, "steps": found})
    FILE.write_text(text.replace('"steps"', '\n"steps"') + "\n", encoding="utf-8", newline="\n")


def draw() -> dict[str, str]:
    steps = json.loads(FILE.read_text(encoding="utf-8"))["steps"]
    shares = {}
    for size, step in steps.items():
        computing = sum(stop - start for start, stop in step["computing"])
        shares[size] = 1 - computing / step["total"]
    many = len(steps["1"]["computing"])
    picture = Picture(
        358,
        f"A training step of a small model on a CPU, {many} pieces of array work, as a line in "
        f"time. With one image {shares['1']:.0%} of the time passes in Python, between them; with "
        f"{SIZES[1]} images {shares[str(SIZES[1])]:.0%}. Without these gaps the step with one "
        "image would be as short as the third line.",
    )
    picture.text(220, 26, f"a training step: {many} pieces of array work", "bold")
    picture.text(220, 46, "measured on a CPU, plain code, one thread", "small")
    left, width = 20, 400
    for place, (size, step) in enumerate(steps.items()):
        top, scale = 84 + 104 * place, width / step["total"]
        images = "1 image" if size == "1" else f"{size} images"
        picture.text(left, top - 8, f"{images}: {milliseconds(step['total'])}", "left bold")
        picture.text(420, top - 8, f"asking {shares[size]:.0%}", "back right bold")
        picture.rect(left, top, width, 40, "plus")
        spans = "".join(
            f"M{n(left + a * scale)} {top}h{n((b - a) * scale)}v40h{n((a - b) * scale)}z"
            for a, b in step["computing"]
        )
        picture.path(spans, "minus")
    picture.text(left, 150, "orange: Python asks", "small left")
    picture.text(420, 150, "blue: arrays are computed", "small right")
    step, top = steps["1"], 284
    alone = sum(b - a for a, b in step["computing"])
    picture.text(left, top - 8, f"1 image, computing alone: {milliseconds(alone)}", "left bold")
    picture.rect(left, top, width * alone / step["total"], 40, "minus")
    picture.text(left, 344, "what is left where all is asked for at once", "small left")
    return {"launches.svg": picture.svg()}


def milliseconds(micro: float) -> str:
    return f"{micro / 1000:.2g} ms"


if __name__ == "__main__":
    measure()
