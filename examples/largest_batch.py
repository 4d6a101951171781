"""The largest batch that trains on this GPU, beside what `training_bytes` predicts.

    python examples/largest_batch.py mixer_b16 mixer_l16            bfloat16, images of 224 x 224

For each variant, with blocks kept and with blocks computed again (checkpoint_blocks): the batch, in
whole multiples of `--step`, at which three recorded training steps still fit. The kernels are
those that keep little, kernels.use("lean").
"""

import argparse
import gc
import sys
import warnings

from minimixer import AdamW, Mixer, backend, kernels, record
from minimixer import functional as F

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", help="names such as mixer_b16")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    parser.add_argument("--precision", default="bfloat16", help="default: bfloat16")
    parser.add_argument("--step", type=int, default=16, help="batches tried (default: each 16th)")
    options = parser.parse_args()
    if options.step < 1:
        raise ValueError(f"--step must be at least 1, got {options.step}")
    device = backend.check_device(options.device)
    if device == "cpu":
        raise ValueError("largest_batch measures a GPU's memory; use --device cuda")
    kernels.use("lean")
    print(f"{'variant':12} {'blocks':14} {'batch':>6} {'predicted':>10} {'in use, GiB':>12}")
    for name in options.variants:
        model = Mixer.from_name(name, seed=None).to(device).set_precision(options.precision)
        for checkpoint_blocks in (False, True):
            model.checkpoint_blocks = checkpoint_blocks
            free = total_memory(device) * 0.97
            predicted = search(lambda b: model.summary(b).training_bytes(checkpoint_blocks) < free,  # noqa: B023
                               options.step, options.step)  # fmt: skip
            found: dict[int, float] = {}
            batch = search(lambda b: trains(model, b, device, found), options.step, predicted)  # noqa: B023
            kind = "computed again" if checkpoint_blocks else "kept"
            used = found.get(batch, 0.0)
            print(f"{name:12} {kind:14} {batch:6} {predicted:10} {used:12.1f}", flush=True)


def search(fits, step: int, start: int) -> int:
    """The largest multiple of `step` that fits, from a first guess on: first twice as far away each
    time, then halving what is between."""
    low, high, far = 0, None, step
    batch = max(step, start // step * step)
    while high is None or high - low > step:
        if fits(batch):
            low = batch
        else:
            high = batch
        if high is None:
            batch, far = low + far, 2 * far
        elif low == 0 and high > step:
            batch, far = max(step, high - far), 2 * far
        else:
            batch = (low + high) // 2 // step * step
        if high is not None and high <= step:
            break
    return low


def trains(model: Mixer, batch: int, device: str, found: dict[int, float]) -> bool:
    """Do three training steps of so many images fit? Notes the memory that they reserve."""
    import cupy

    optimizer = AdamW(model.parameters())
    pool = cupy.get_default_memory_pool()

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = record(step, model, optimizer)
    try:
        height, width, channels = model.height, model.width, model.in_channels
        images = cupy.zeros((batch, height, width, channels), dtype="uint8")
        labels = cupy.zeros(batch, dtype="int64")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a step that can't be recorded for want of memory
            for _ in range(3):
                loss = run(images, labels)
        loss.item()
        found[batch] = (run.reserved_bytes + pool.used_bytes()) / GIB
        return run.recordings == 1
    except (MemoryError, cupy.cuda.runtime.CUDARuntimeError):
        return False
    finally:
        optimizer.zero_grad()
        optimizer = run = step = loss = images = labels = None
        gc.collect()
        pool.free_all_blocks()


def total_memory(device: str) -> int:
    import cupy

    return cupy.cuda.Device(int(device[5:])).mem_info[1]


if __name__ == "__main__":
    try:
        main()
    except ValueError as problem:
        print(f"largest_batch: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
