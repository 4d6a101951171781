"""Did a rebuilding change what it should not? Two checked-out trees, OLD and NEW, side by side.

    python tests/guards.py bits OLD NEW [--device cuda]       weights after 20 training steps
    python tests/guards.py times OLD NEW [--device cuda] [--pairs 15] [--only small s16]
    python tests/guards.py checkpoints write OLD DIR          a checkpoint of every kind
    python tests/guards.py checkpoints read NEW DIR           is each read as it was written?

Fresh processes measure: each runs a function of this file with one tree's minimixer, by its public
names alone, so that trees of long ago will do. bits and checkpoints end with status 1 if anything
differs that must not; the plain code's bits, and two-byte numbers' on the CPU, are only shown. For
times, the trees take turns: the medians of OLD and of NEW, and the median of all pairs' ratios NEW
over OLD with a 95% interval (bootstrap). Memory is the process's peak, on a GPU what CuPy's pool
and the recording hold. `plain` is `small` in plain code, `ops` 10,000 operations on one number.
"""

import argparse
import functools
import hashlib
import importlib
import inspect
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SMALL = {"image_size": 28, "patch_size": 4, "in_channels": 1, "num_classes": 10, "num_blocks": 4,
         "hidden_dim": 128, "tokens_mlp_dim": 64, "channels_mlp_dim": 512}  # fmt: skip
TINY = {**SMALL, "patch_size": 7, "num_blocks": 3, "hidden_dim": 96, "tokens_mlp_dim": 32,
        "channels_mlp_dim": 256}  # fmt: skip
TIMES = {
    "cpu": ["small", "small-inference", "s16", "s16-inference", "linear", "ops", "plain", "import"],
    "cuda": ["b16", "b16-inference", "small"],
}
KINDS = {  # of checkpoints: what is special about the model, and who writes it
    "model": ({}, "save"), "names": ({"class_names": list("abcdefghij")}, "save"),
    "digit": ({"preparation": "digit"}, "save"), "no-head": ({"num_classes": 0}, "save"),
    "adamw": ({}, "AdamW"), "sgd": ({}, "SGD"), "float64": ({"dtype": "float64"}, "AdamW"),
    "depth": ({"stochastic_depth": 0.3}, "AdamW"),
    "authors": ({}, "npz"), "timm": ({"approximate": "none"}, "timm"),
}  # fmt: skip
# Apart, since what this file has imported already would cost nothing.
IMPORT = """import numpy, time; start = time.perf_counter(); import minimixer
seconds = time.perf_counter() - start; import json, resource
print(json.dumps([seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"""


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=("bits", "times", "checkpoints", "child"))
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--device", choices=tuple(TIMES), default="cpu")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", nargs="+", help=f"of {TIMES}")
    options = parser.parse_args()
    first, *others = options.arguments
    if options.command == "child":
        print(json.dumps(globals()[first](*others)))
    elif options.command == "bits":
        sys.exit(compare_bits(first, *others, options.device))
    elif options.command == "times":
        for case in options.only or TIMES[options.device]:
            compare_times(first, *others, options.device, case, options.pairs)
    else:
        results = child(others[0], "checkpoints", first, *others[1:])
        print(*(f"{kind:10} {result}" for kind, result in results.items()), sep="\n")
        sys.exit(any("DIFFERENT" in result for result in results.values()))


def child(tree, *call, **environment):
    """What a function of this file returns in a fresh process with that tree's minimixer."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "MINIMIXER_"))}
    package = Path(tree, "minimixer").resolve(strict=True)
    kept |= {"PYTHONPATH": str(package.parent), **environment}
    command = [sys.executable, "-P"]  # not the package in the directory where this was called
    command += ["-c", IMPORT] if call[-1] == "import" else [__file__, "child", *call]
    done = subprocess.run(command, env=kept, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


def setup(device="cpu", precision="float32", optimizer="AdamW", clip=True, **config):
    """A model of the tiny sizes but for `config`, or by name; its optimizer; a training step."""
    import minimixer
    from minimixer import Mixer
    from minimixer import functional as F

    model = Mixer.from_name(**config) if "name" in config else Mixer(**{**TINY, **config})
    model.to(device).set_precision(precision)
    constants = {"momentum": 0.9} if optimizer == "SGD" else {}
    kind = getattr(minimixer, optimizer)
    optimizer = kind(model.parameters(), lr=4e-3, weight_decay=0.05, **constants)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if clip:
            optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, optimizer, step


def random_batch(size, model):
    numbers, config = np.random.default_rng(0), model.config
    shape = (size, *config["image_size"], config["in_channels"])
    images = numbers.integers(0, 256, shape, dtype=np.uint8)
    return images, numbers.integers(0, config["num_classes"] or 10, size)


# ---- bits ---------------------------------------------------------------------------------------


def compare_bits(old, new, device):
    before, after = (child(tree, "bits", device, OPENBLAS_NUM_THREADS="1") for tree in (old, new))
    differ = False
    for case, result in before.items():
        same = after[case] == result
        required = "reference" not in case and (device != "cpu" or "precision" not in case)
        differ |= required and not same
        verdict = "same" if same else "DIFFERENT" if required else "(different)"
        print(f"{result}  {after[case]}  {verdict:11}  {case}")
    return differ


def bits(device):
    """Of every case a digest of its weights and the last loss."""
    cases = {", ".join(f"{k} {v}" for k, v in case.items()): case for case in bits_cases(device)}
    return {name: train(device, **case) for name, case in cases.items()}


def bits_cases(device):
    blocks = [{"checkpoint_blocks": again, "stochastic_depth": depth}
              for again in (False, True) for depth in (0.0, 0.3)]  # fmt: skip
    if device == "cpu":
        few = {"batch_size": 3}  # too few for some fast forms
        yield from [*blocks, {"dtype": "float64"}, {"approximate": "none"}, few]
        yield from [{"optimizer": "SGD"}, {"precision": "bfloat16"}, {"precision": "float16"}]
        yield from ({"forms": "reference", **block} for block in blocks)
        return
    for recorded in (False, True):
        for precision in ("float32", "tf32", "bfloat16", "float16"):
            for block in blocks:
                yield {"precision": precision, "recorded": recorded, **block}
        wide = {"name": "mixer_b16", "num_blocks": 2, "batch_size": 8}
        yield {"precision": "bfloat16", "recorded": recorded, **wide}


def train(device, forms="auto", recorded=False, batch_size=128, **settings):
    from minimixer import data, kernels, record

    kernels.use(forms)
    model, optimizer, step = setup(device, **settings)
    count = 20 * batch_size
    mnist = "name" not in settings
    images, labels = data.load_mnist()[:2] if mnist else random_batch(count, model)
    batches = data.Batches(images[:count], labels[:count], batch_size, max_shift=1)
    run = record(step, model, optimizer) if recorded else step
    for x, y in batches.epoch(0):
        loss = run(x, y)
    if recorded and not run.recordings:
        raise SystemExit(f"guards: the step was not recorded: {settings}")
    weights = b"".join(array.tobytes() for _, array in sorted(model.state_dict().items()))
    return f"{hashlib.sha256(weights).hexdigest()[:16]} {loss.item():.6f}"


# ---- times and memory ---------------------------------------------------------------------------


def compare_times(old, new, device, case, pairs):
    for tree in (old, new):  # not counted: what is compiled once is compiled here
        child(tree, "measure", device, case)
    found = {old: [], new: []}
    for pair in range(pairs):
        for tree in (old, new)[:: (-1) ** pair]:
            found[tree].append(child(tree, "measure", device, case))
    for i, (what, unit) in enumerate((("time, ms", 1e-3), ("memory, MiB", 2**20))):
        before, after = ([result[i] / unit for result in found[tree]] for tree in (old, new))
        ratios, draw = [b / a for a, b in zip(before, after, strict=True)], random.Random(0)
        drawn = sorted(statistics.median(draw.choices(ratios, k=pairs)) for _ in range(4000))
        a, b, ratio = map(statistics.median, (before, after, ratios))
        print(f"{case:16} {what:12} {a:11.4f} {b:11.4f}  {ratio:.4f}", end=" ")
        print(f"({drawn[100]:.4f} to {drawn[3899]:.4f}), {pairs} pairs", flush=True)


def measure(device, case):
    """Seconds of one step (linear, ops: forward and backward), and bytes."""
    from minimixer import Linear, Tensor, kernels, no_grad, record

    if case == "linear":
        layer, dy = Linear(2, 3), np.ones((4, 3), np.float32)
        x = Tensor(np.ones((4, 2), np.float32), requires_grad=True)
        return repeat(lambda: layer(x).backward(dy), 500, 20)
    if case == "ops":
        x = Tensor(np.ones((), np.float32), requires_grad=True)
        chain = functools.partial(functools.reduce, lambda t, _: t * 0.9 + x, range(5000), x)
        return repeat(lambda: chain().backward(), 1, 12)
    kernels.use("reference" if case == "plain" else "auto")
    variant = case.removesuffix("-inference")
    config = {"name": f"mixer_{variant}"} if variant in ("s16", "b16") else SMALL
    precision = "bfloat16" if variant == "b16" else "float32"
    model, optimizer, work = setup(device, precision, clip=False, **config)
    images, labels = random_batch({"s16": 16, "b16": 256}.get(variant, 128), model)
    if variant != case:
        model.eval()
        work = no_grad()(lambda images, labels: model(images))
    if device == "cpu":
        return repeat(lambda: work(images, labels), 1, 2 if variant == "s16" else 20)
    import cupy

    images, labels = cupy.asarray(images), cupy.asarray(labels)
    run, wait = record(work, model, optimizer), cupy.cuda.Device().synchronize
    times = 10 if variant == "b16" else 200
    seconds, _ = repeat(lambda: run(images, labels), times, 8, wait)
    if not run.recordings:
        raise SystemExit(f"guards: {case} was not recorded")
    return seconds, cupy.get_default_memory_pool().total_bytes() + run.reserved_bytes


def repeat(work, times, rounds, wait=int):
    """Seconds of work(), done so many times a round, in the median; the process's peak of bytes."""
    import resource  # which Windows lacks

    warm, found = 1 + rounds // 4, []
    for _ in range(warm + rounds):
        start = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        found.append((time.perf_counter() - start) / times)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(found[warm:]), peak


# ---- checkpoints --------------------------------------------------------------------------------


def checkpoints(what, directory):
    """Write or read every kind; beside each lies what is to be found in it."""
    from minimixer import Mixer

    results, arguments = {}, inspect.signature(Mixer).parameters
    Path(directory).mkdir(parents=True, exist_ok=True)
    for kind, (changes, writer) in KINDS.items():
        path = Path(directory, f"{kind}.{'safetensors' if writer == 'timm' else 'npz'}")
        if not (set(changes) <= set(arguments) if what == "write" else path.exists()):
            results[kind] = "left out: there is none"
            continue
        found = (write if what == "write" else read)(path, writer, changes)
        if what == "write":
            np.savez(f"{path}.expected.npz", **found)
        expected = np.load(f"{path}.expected.npz")
        differ = [name for name in expected if not agree(name, found.get(name), expected[name])]
        results[kind] = f"DIFFERENT: {', '.join(differ)}" if differ else f"{len(expected)} agree"
    return results


def write(path, writer, changes):
    """A checkpoint of a model with all weights at random; what is in it."""
    progress, numbers = {"epoch": 3, "note": "half way"}, np.random.default_rng(0)
    is_run = writer in ("AdamW", "SGD")
    model, optimizer, step = setup(optimizer=writer if is_run else "AdamW", **changes)
    state = model.state_dict()
    for name, value in state.items():
        state[name] = value + 0.1 * numbers.standard_normal(value.shape)
    model.load_state_dict(state)
    if is_run:
        for _ in range(3):  # for averages, and a place in the sequence of random numbers
            step(*random_batch(8, model))
        saving().save_checkpoint(path, model, optimizer, progress)
        return facts(model, optimizer, progress)
    if writer == "save":
        saving().save_checkpoint(path, model)
    else:
        model.export(path, writer)
    return facts(model)


def read(path, writer, changes):
    from minimixer import Mixer

    if writer not in ("AdamW", "SGD"):
        return facts(Mixer.load(path) if writer == "save" else Mixer.from_pretrained(path))
    model, optimizer, _ = setup(optimizer=writer, seed=1, **changes)
    return facts(model, optimizer, saving().load_checkpoint(path, model, optimizer))


def saving():
    """The module of checkpoints, where this tree has it."""
    try:
        return importlib.import_module("minimixer.checkpoint")
    except ModuleNotFoundError:
        return importlib.import_module("minimixer.training.checkpoint")


def facts(model, optimizer=None, progress=None):
    """Settings, weights, logits; of a run its progress and the optimizer's state, too."""
    attributes = ("class_names", "dtype", "mean", "std", "preparation")
    said = {name: getattr(model, name) for name in attributes if hasattr(model, name)}
    random_state = [model.random.seed, *model.random.counters] if optimizer else None
    said |= {**model.config, "progress": progress, "random": random_state}
    found = {name: np.array(str(value)) for name, value in said.items()} | model.state_dict()
    found["logits"] = model.eval()(random_batch(8, model)[0]).numpy()
    for name, values in optimizer.state_dict().items() if optimizer else ():
        for i, value in enumerate([values] if name == "step" else values):
            found[f"{name} {i}"] = np.asarray(value)
    return found


def agree(name, a, b):
    if a is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.allclose(a, b, rtol=1e-5, atol=1e-5) if name == "logits" else np.array_equal(a, b)


if __name__ == "__main__":
    main()
