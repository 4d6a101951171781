"""The models of the comparison: their sizes, a training step, and what it costs.

They are trained with kernels.use("untimed"), so that a GPU of the same kind gives the same bits.
All of this is measured alike with the plain code, "reference", and times once more with the fast
forms, "auto", on a GPU with recorded steps:

    images_per_second  inference, the median of timed batches, which are on the device already
    step_seconds       a training step, the same way, from images on the CPU
    peak_bytes         the most that arrays hold at once in a training step: weights, gradients,
                       AdamW's averages and activations. On the CPU tracemalloc counts what NumPy
                       allocates, the same number on every run, where the size of the process also
                       tells what the C library keeps; on a GPU the same from CuPy's pool
"""

import contextlib
import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from baselines import Hybrid, ResNet, ViT
from minimixer import SGD, AdamW, Mixer, Module, backend, no_grad, record
from minimixer import functional as F
from support.kernels import using
from support.machine import pool_peak

Spec = dict[str, Any]
Shape = tuple[int, int, int]  # of an image: H, W, channels
WARM_CALLS = 3
TIMED_SECONDS = 0.4

# ---- models -------------------------------------------------------------------------------------

FAMILIES = {"vit": "attention", "resnet": "convolution", "mixer": "MLP", "hybrid": "hybrid"}
COMPARED = ["vit", "resnet", "mixer"]  # unless told otherwise; the hybrid is of one size
# About equal numbers of parameters within a size, which no learning rate can change; their MACs
# differ, are in the table, and --equal flops makes up for them. `grid`: patches a side, at most.
# The budget of each, unless told otherwise: training steps, images a step.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "grid": 4, "steps": 200, "batch_size": 64,
        "mixer": {"num_blocks": 2, "hidden_dim": 32, "tokens_mlp_dim": 16, "channels_mlp_dim": 128},
        "vit": {"num_blocks": 2, "hidden_dim": 28, "mlp_dim": 112, "num_heads": 2},
        "resnet": {"block_counts": [1, 1, 1], "width": 6, "groups": 4},
    },
    "tiny": {
        "grid": 4, "steps": 800, "batch_size": 64,
        "mixer": {"num_blocks": 4, "hidden_dim": 64, "tokens_mlp_dim": 32, "channels_mlp_dim": 256},
        "vit": {"num_blocks": 3, "hidden_dim": 64, "mlp_dim": 256, "num_heads": 2},
        "resnet": {"block_counts": [1, 1, 1, 1], "width": 8, "groups": 4},
    },
    "small": {
        "grid": 8, "steps": 1000, "batch_size": 128,
        "mixer": {"num_blocks": 6, "hidden_dim": 192, "tokens_mlp_dim": 96,
                  "channels_mlp_dim": 768},
        "vit": {"num_blocks": 4, "hidden_dim": 192, "mlp_dim": 768, "num_heads": 3},
        "resnet": {"block_counts": [1, 1, 1, 1], "width": 32, "groups": 8},
        "hybrid": {"block_counts": [1, 1], "width": 24, "groups": 8, "num_blocks": 3,
                   "hidden_dim": 192, "mlp_dim": 768, "num_heads": 3},
    },
    "base": {
        "grid": 8, "steps": 3000, "batch_size": 128,
        "mixer": {"num_blocks": 8, "hidden_dim": 320, "tokens_mlp_dim": 160,
                  "channels_mlp_dim": 1280},
        "vit": {"num_blocks": 6, "hidden_dim": 320, "mlp_dim": 1280, "num_heads": 5},
        "resnet": {"block_counts": [2, 2, 2, 1], "width": 56, "groups": 8},
    },
}  # fmt: skip


def patch_size(shape: Shape, grid: int) -> int:
    """The smallest P that divides both sides of an (H, W, channels) image and cuts neither into
    more than `grid` patches."""
    height, width, _ = shape
    common = math.gcd(height, width)
    fitting = [
        p for p in range(1, common + 1) if common % p == 0 and max(height, width) <= p * grid
    ]
    if not fitting:
        raise ValueError(f"{height} x {width} images can't be cut into a grid of {grid} patches")
    return fitting[0]


def model_config(family: str, size: str, shape: Shape, classes: int) -> Spec:
    """The arguments of a family's model, but for the seed; of plain numbers and lists."""
    if family not in SIZES[size]:
        raise ValueError(f"there is no {size} {family}")
    config: Spec = {"image_size": list(shape[:2]), "in_channels": shape[2], "num_classes": classes}
    if family in ("resnet", "hybrid"):
        config["stem"] = "small" if max(shape[:2]) <= 64 else "imagenet"
    if family in ("vit", "hybrid"):
        config["pool"] = "mean"  # as Mixer's, so that what mixes tokens is the difference
    if family == "hybrid":
        halved = len(SIZES[size][family]["block_counts"]) + (
            1 if config["stem"] == "imagenet" else -1
        )
        shape = -(-shape[0] // 2**halved), -(-shape[1] // 2**halved), shape[2]
    if family != "resnet":
        config["patch_size"] = patch_size(shape, SIZES[size]["grid"])
    return config | SIZES[size][family]


def make_model(
    family: str, config: Spec, seed: int, device: str = "cpu", precision: str = "float32"
) -> Any:
    """A fresh model with a head of zeros. `precision` "tf32": a GPU's products with short
    mantissas, in the fast forms."""
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    kind = {"mixer": Mixer, "vit": ViT, "resnet": ResNet, "hybrid": Hybrid}[family]
    model = kind(**arguments, seed=seed).to(device)
    model.buffer.precision = precision if precision == "tf32" else None
    return model


def device_of(model: Any) -> str:
    return backend.device_of(model.parameters()[0].data)


def count_macs(model: Any) -> int:
    """Multiply-accumulates of matrix products, for one image."""
    return model.summary().macs if isinstance(model, Mixer) else int(model.macs())


def train_flops(macs: int, images: int) -> float:
    """Floating-point operations of training on so many images: forward, and backward twice that."""
    return 6.0 * macs * images


# ---- a training step ---------------------------------------------------------------------------


def make_step(model: Module, optimizer: Any, clip: float, graph: str = "auto") -> Any:
    """One training step on (images, labels) -> the loss; on a GPU recorded as a CUDA graph (but for
    the plain code, whose products are CuPy's, which refuse that)."""

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.clip_grad_norm(clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return record(step, model, optimizer, graph=graph)


def make_optimizer(model: Module, spec: Spec) -> Any:
    if spec["optimizer"] == "sgd":  # the paper's for fine-tuning
        return SGD(model.parameters(), lr=spec["lr"], momentum=0.9)
    return AdamW(model.parameters(), lr=spec["lr"], weight_decay=spec["weight_decay"])


# ---- measuring ----------------------------------------------------------------------------------


def costs(spec: Spec, shape: Shape, device: str) -> Spec:
    """All of the above, of a model that is trained on such images as `spec` says."""
    classes = spec["config"]["num_classes"]

    def make() -> Any:
        return make_model(spec["family"], spec["config"], 0, device, spec["precision"])

    found: Spec = {"peak_bytes": peak_bytes(make, shape, classes, spec, device)}
    for fast, name in ((False, ""), (True, "fast_")):
        found[f"{name}step_seconds"] = step_seconds(make, shape, classes, spec, device, fast)
        found[f"{name}images_per_second"] = inference_rate(make(), shape, device, fast)
    return found


@contextlib.contextmanager
def chosen_kernels(fast: bool) -> Iterator[str]:
    """The plain code, unless `fast`; what it gives is record's `graph`, "off" or "auto"."""
    with using("auto" if fast else "reference"):
        yield "auto" if fast else "off"


def time_calls(call: Callable[[], Any], device: str) -> float:
    """Seconds a call: the median of as many groups of calls as TIMED_SECONDS hold, 5 at least. A
    group is one call on the CPU, 10 on a GPU, which works on while Python asks for more."""
    group = 1 if device == "cpu" else 10
    for _ in range(WARM_CALLS):
        call()
    times: list[float] = []
    while len(times) < 5 or sum(times) * group < TIMED_SECONDS:
        backend.synchronize(device)
        start = time.perf_counter()
        for _ in range(group):
            call()
        backend.synchronize(device)
        times.append((time.perf_counter() - start) / group)
    return statistics.median(times)


def batch_for(shape: Shape, usual: int) -> int:
    """`usual` images of 32 x 32 at a time, or as many as have so many pixels."""
    return max(1, min(usual, usual * 32 * 32 // (shape[0] * shape[1])))


def example(shape: Shape, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels to measure with."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, random.integers(0, classes, count)


def inference_rate(model: Any, shape: Shape, device: str, fast: bool = False) -> float:
    """Images a second, in batches of 64 on the CPU and of 512 on a GPU; fewer of larger images."""
    images, _ = example(shape, 2, batch_for(shape, 64 if device == "cpu" else 512))
    images = backend.to_device(images, device)

    def infer(images):
        with no_grad():
            return model(images)

    model.eval()
    with chosen_kernels(fast) as graph:
        run = record(infer, model, graph=graph)
        return len(images) / time_calls(lambda: run(images), device)


def step_seconds(
    make: Callable[[], Any], shape: Shape, classes: int, spec: Spec, device: str, fast: bool = False
) -> float:
    """Seconds of a training step of a fresh model, from images on the CPU."""
    model = make()
    images, labels = example(shape, classes, spec["batch_size"])
    with chosen_kernels(fast) as graph:
        step = make_step(model, make_optimizer(model, spec), spec["clip"], graph)
        return time_calls(lambda: step(images, labels), device)


def peak_bytes(make: Callable[[], Any], shape: Shape, classes: int, spec: Spec, device: str) -> int:
    """The most bytes that arrays hold during training steps, with the model's own; see above."""
    arrays = example(shape, classes, spec["batch_size"])
    images, labels = (backend.to_device(array, device) for array in arrays)

    def work():
        model = make()
        step = make_step(model, make_optimizer(model, spec), spec["clip"]).function
        step(images, labels)
        step(images, labels)

    gc.collect()
    with chosen_kernels(fast=False):
        return _traced(work) if device == "cpu" else _pooled(work)


def _traced(work: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _pooled(work: Callable[[], None]) -> int:
    import cupy

    before = cupy.get_default_memory_pool().used_bytes()
    return pool_peak(work) - before
