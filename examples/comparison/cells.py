"""One cell of a comparison: one model, one seed, one amount of data, trained, measured and kept.

A cell is described by a dict, its spec: everything that determines the result. Its outcome is kept
as a small JSON file whose name ends in a hash of the spec, and which appears whole or not at all.
So a comparison goes on after any interruption, and what is finished never runs again. Weights
are kept beside it where a figure or a transfer needs them. A file that was changed since, or that
lacks what the tables show, is no result: a line says so, and the cell is computed anew. Several
processes may work in one folder: each cell is locked by the one that computes it, and is taken over
by another if that one dies.

`train` is the training loop, the same for all models. The way of a result:

    Comparison.final, .learning_rate     what is asked for, as a spec
    complete                             with what does not depend on the model: data, machine
    kept                                 from its file; else, once,
    compute_cell -> train, evaluate, ... from training and measuring

A final cell holds test accuracy, that on training images as they are, without shifts (5,000 of
them), the test accuracy on 1,000 images at 8 points of the training, parameters, MACs and
train_flops: 6 x MACs x images seen. What a step and inference cost (models.py) is a cell of its
own, of kind "costs", and measured when all are trained: what else a machine does during minutes
of training is not in it.
"""

import contextlib
import hashlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minimixer
from comparison.data import Data, shuffle, shuffle_index
from comparison.models import (
    Spec,
    batch_for,
    count_macs,
    device_of,
    make_model,
    make_optimizer,
    make_step,
    train_flops,
)
from minimixer import Tensor, backend, data, schedule
from minimixer.training.checkpoint import save_checkpoint
from minimixer.training.files import Lock, parse_json, read_file, replace_file
from minimixer.training.metrics import Metrics
from minimixer.training.names import printable
from support.machine import gpu_name

Result = dict[str, Any]
FORMAT = 3  # of the cells; older ones are not looked at
CURVE_POINTS, CURVE_IMAGES = 8, 1000
TRAIN_IMAGES = 5000
STEPS_TO_START = 10  # after which a GPU has compiled and recorded what it repeats

# ---- training -----------------------------------------------------------------------------------


def train(
    model: Any, spec: Spec, images: np.ndarray, labels: np.ndarray,
    index: np.ndarray | None, look: Callable[[int], None], name: str, most_minutes: float,
) -> Result:  # fmt: skip
    """Train for spec["steps"] steps; `look(step)` is called CURVE_POINTS times on the way.

    index   where shuffled images take their pixels from; applied after the random shift, so that a
            shuffled model sees the very images of the other, shuffled
    ValueError if the whole would take longer than `most_minutes`.
    """
    steps, device = spec["steps"], device_of(model)
    optimizer = make_optimizer(model, spec)
    batch_size = min(spec["batch_size"], len(images))
    batches = data.Batches(images, labels, batch_size, spec["seed"], spec["max_shift"])
    step = make_step(model, optimizer, spec["clip"])
    marks = curve_steps(steps)
    loss, since, spent_looking = Tensor(math.nan), 0.0, 0.0
    model.train()
    with tqdm(total=steps, desc=name, leave=False, disable=None, dynamic_ncols=True) as bar:
        for number, (x, y) in enumerate(full_batches(batches, steps), 1):
            optimizer.lr_factor = schedule(number - 1, steps, int(spec["warmup"] * steps), "cosine")
            loss = step(shuffle(x, index), y)
            bar.update()
            if number in marks:
                started = now(device)
                look(number)
                spent_looking += now(device) - started
            if number == STEPS_TO_START:
                since, spent_looking = now(device), 0.0
            if number == 2 * STEPS_TO_START:
                seconds = (now(device) - since - spent_looking) / STEPS_TO_START
                check_minutes(seconds * steps / 60, most_minutes, name)
    final = loss.item()
    return {"images_seen": steps * batch_size, "loss": final if math.isfinite(final) else None}


def curve_steps(steps: int) -> list[int]:
    """After which steps the test accuracy is looked at, the last one too."""
    return [round(steps * (n + 1) / CURVE_POINTS) for n in range(CURVE_POINTS)]


def now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was asked for."""
    backend.synchronize(device)
    return time.perf_counter()


def check_minutes(minutes: float, most: float, name: str) -> None:
    if minutes > most:
        raise ValueError(
            f"{name} would train for about {minutes:.1f} minutes; --cell-minutes allows {most:g}: "
            "lower --budget or choose smaller --sizes"
        )


def full_batches(batches: data.Batches, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """So many batches, epoch after epoch; what is too little for a whole batch is left out of its
    epoch (other images each time), so that equal steps are equal numbers of images."""
    full = len(batches.images) // batches.batch_size
    for epoch in range(-(-steps // full)):
        yield from itertools.islice(batches.epoch(epoch), min(full, steps - epoch * full))


def evaluate(
    model: Any, images: np.ndarray, labels: np.ndarray, index: np.ndarray | None = None
) -> tuple[float, float]:
    """(accuracy, mean loss); the loss is inf for a model that answers NaN."""
    piece = batch_for(images.shape[1:], 256 if device_of(model) == "cpu" else 2000)
    found = Metrics(model.num_classes)
    for start in range(0, len(labels), piece):
        part = slice(start, start + piece)
        found.add(model.predict_logits(shuffle(images[part], index), piece), labels[part])
    return found.accuracy, found.loss if math.isfinite(found.loss) else math.inf


# ---- cells --------------------------------------------------------------------------------------


def machine(device: str) -> str:
    """What times and the last bits depend on, in words."""
    if device == "cpu":
        return f"CPU, NumPy {np.__version__}"
    from minimixer.kernels.gpu import plans  # which needs CuPy's libraries

    return f"{gpu_name(device)}, cuBLAS {plans.version()}"


def cell_path(folder: Path, spec: Spec) -> Path:
    """Where the result of `spec` is kept."""
    text = json.dumps(spec, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return folder / f"{spec['kind']}-{spec['family']}-{spec['size']}-{digest}.json"


class Busy(Exception):
    """Another process is computing this cell."""


def kept(
    folder: Path, spec: Spec, compute: Callable[[], Result], wait: bool = True,
    weights: bool = False,
) -> Result:  # fmt: skip
    """The result of `spec`: from its file, or computed and written there. One that another process
    is computing is waited for, and computed here if that one ends without it; without `wait` that
    is Busy. With `weights` those must be there too."""
    path = cell_path(folder, spec)
    result = read_cell(path, spec, weights)
    if result is not None:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    try:
        held = Lock(lock, wait)
    except BlockingIOError:
        raise Busy from None
    with held:
        result = read_cell(path, spec, weights, say=True)
        if result is None:
            result = compute()
            folder.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
            content = {"sum": checksum(spec, result), "spec": spec, "result": result}
            with replace_file(path) as file:
                file.write(json.dumps(content, indent=1, allow_nan=False).encode())
        with contextlib.suppress(OSError):  # who waits for it finds the result instead
            lock.unlink()
    return result


def read_cell(path: Path, spec: Spec, weights: bool, say: bool = False) -> Result | None:
    """The result in a cell's file; None if there is none, if it is not what was written there, or
    if `weights` are asked for and missing, which `say` tells. OSError or ValueError, with the path,
    for what could not be replaced."""
    try:
        content = read_file(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}; remove it") from None
    try:
        found = parse_json(content)
        if found["spec"] != spec:
            raise ValueError("it is of other settings")
        if found["sum"] != checksum(spec, found["result"]):
            raise ValueError("it was changed after it was written")
        check_result(spec, found["result"])
        if weights and found["result"]["weights"]:
            path.with_suffix(".npz").stat()
        return found["result"]
    except (KeyError, TypeError):
        why = "it is damaged"
    except OSError:
        why = "its weights are missing"
    except ValueError as error:
        why = str(error)
    if say:
        print(f"cell   {printable(path)}: {printable(why)}; computed anew", flush=True)
    return None


@contextlib.contextmanager
def again(path: Path) -> Iterator[None]:
    """Within it the cell of this file is computed anew; then both results are told. If it could not
    be, the file is as before. ValueError if there is none, or if nobody asked for it."""
    aside, lock = path.with_suffix(".before"), path.with_suffix(".again")
    try:
        old = aside if aside.exists() else path  # the first is of a process that was killed
        before = parse_json(read_file(old))["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--again {printable(path)}: there is no such cell ({error})") from None
    try:
        held = Lock(lock)
    except BlockingIOError:
        raise ValueError(f"--again {printable(path)}: another process is at it") from None
    with held:
        if old == path:
            path.replace(aside)
        path.unlink(missing_ok=True)
        try:
            yield
        finally:
            computed = path.exists()
            if computed:
                aside.unlink()
            else:
                aside.replace(path)
            lock.unlink(missing_ok=True)
    if not computed:
        raise ValueError(f"--again {printable(path)}: this command does not ask for that cell")
    after = parse_json(read_file(path))["result"]
    for name, value in before.items():
        now = after.get(name)
        print(f"again  {name}: {value!r:.60}, {'the same' if now == value else f'now {now!r:.60}'}")


def checksum(spec: Spec, result: Result) -> str:
    return hashlib.sha256(json.dumps([spec, result], sort_keys=True).encode()).hexdigest()


def check_result(spec: Spec, result: Result) -> None:
    """ValueError unless `result` holds all that tables and figures take from such a cell."""

    def within(least: float, most: float, *kinds: type) -> Callable[[Any], bool]:
        return lambda value: type(value) in kinds and least <= value <= most  # NaN is not

    share, count = within(0, 1, int, float), within(1, 1e18, int)
    positive, number = within(1e-300, 1e300, int, float), within(-1e300, 1e300, int, float)

    def some_shots(found: Any) -> bool:
        sizes = [spec["draws"]] * len(spec["probes"])
        return [*map(len, found)] == sizes and all(map(share, itertools.chain(*found)))

    final = spec["kind"] == "final"
    trained = {"images_seen": count, "loss": lambda value: value is None or number(value)}
    wanted: dict[str, Callable[[Any], bool]] = {
        "tokens": {"step_ms": positive, "peak_mib": positive},
        "untrained": {"probe": share, "probes": some_shots},
        "costs": {"peak_bytes": count, **dict.fromkeys((
            "step_seconds", "images_per_second", "fast_step_seconds", "fast_images_per_second"
        ), positive)},
    }.get(spec["kind"], trained)  # fmt: skip
    if spec["kind"] == "sweep":
        wanted |= {"held_accuracy": share, "held_loss": wanted["loss"]}
    if spec["kind"] == "decade":
        wanted |= {"accuracy": share, "held_accuracy": share, "train_accuracy": share,
                   "train_flops": positive, "probe": share,
                   "tuned": lambda found: all(map(share, found)),
                   "probes": some_shots}  # fmt: skip
    if final:
        wanted |= {"accuracy": share, "train_accuracy": share, "parameters": count, "macs": count,
                   "train_flops": positive}  # fmt: skip
        steps, accuracies = zip(*result["curve"], strict=True)
        if list(steps) != curve_steps(spec["steps"]) or not all(map(share, accuracies)):
            raise ValueError("its curve is of other steps, or no accuracies")
    if final and spec["keep"]:
        wanted["weights"] = lambda value: type(value) is bool
    for name, suits in wanted.items():
        if not suits(result[name]):
            raise ValueError(f"its {name} is {result[name]!r:.40}")


def complete(spec: Spec, source: Data, device: str) -> Spec:
    """With what does not depend on the model."""
    return {"format": FORMAT, "version": minimixer.__version__, "machine": machine(device),
            "data": source.fingerprint, **spec}  # fmt: skip


def compute_cell(
    folder: Path, spec: Spec, source: Data, device: str, most_minutes: float
) -> Result:  # fmt: skip
    """Train what `spec` says: kind "sweep": only accuracy and loss on the held-out images;
    "final": all there is."""
    family, seed = spec["family"], spec["seed"]
    model = make_model(family, spec["config"], seed, device, spec["precision"])
    if spec["start"] is not None:
        model.load_state_dict(starting_weights(folder, spec, model))
    index = None
    if spec["shuffle"] != "none":
        index = shuffle_index(spec["shuffle"], *source.shape[:2], spec["patch_size"])
    count, curve = spec["train_images"], []
    images, labels = source.train_images[:count], source.train_labels[:count]

    def look(step: int) -> None:
        if spec["kind"] == "final":
            part = slice(CURVE_IMAGES)
            test = evaluate(model, source.test_images[part], source.test_labels[part], index)
            curve.append([step, test[0]])

    name = f"{family} {spec['size']} seed {seed}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "minimixer: .*", RuntimeWarning)  # steps not recorded
        result = train(model, spec, images, labels, index, look, name, most_minutes)
    if spec["kind"] == "sweep":
        accuracy, loss = evaluate(model, source.held_images, source.held_labels)
        shown = loss if math.isfinite(loss) else None  # JSON has no infinity
        return result | {"held_accuracy": accuracy, "held_loss": shown}
    macs = count_macs(model)
    part = slice(TRAIN_IMAGES)
    result |= {
        "accuracy": evaluate(model, source.test_images, source.test_labels, index)[0],
        "train_accuracy": evaluate(model, images[part], labels[part], index)[0],
        "curve": curve, "parameters": model.num_parameters(), "macs": macs,
        "train_flops": train_flops(macs, result["images_seen"]),
    }  # fmt: skip
    if spec["keep"]:
        folder.mkdir(parents=True, exist_ok=True)
        result["weights"] = all(np.isfinite(value).all() for value in model.state_dict().values())
        if result["weights"]:  # others are of no use
            save_checkpoint(cell_path(folder, spec).with_suffix(".npz"), model)
    return result


def starting_weights(folder: Path, spec: Spec, model: Any) -> dict[str, np.ndarray]:
    """The upstream model's weights, with this one's own fresh head."""
    path = folder / spec["start"]
    if not path.exists():
        raise ValueError(f"{path} is missing: did upstream training diverge? Remove the .json of "
                         "that name to repeat it")  # fmt: skip
    try:
        weights = type(model).load(path).state_dict()
        weights |= {n: v for n, v in model.state_dict().items() if n.startswith("head.")}
        return {name: weights[name] for name in model.state_dict()}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and the .json of that name, "
                         "and the same command makes it again") from None  # fmt: skip
