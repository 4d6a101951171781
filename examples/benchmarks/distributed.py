"""benchmark.py --distributed N: training steps of N processes together, beside one alone.

    python examples/benchmark.py --distributed 2 --batch-size 256
    python examples/benchmark.py --distributed 2 --variant mixer_b16 --batch-size 256 --weak \\
        --device cuda --precision bfloat16

--batch-size is that of all processes together, and with --weak that of each. On the CPU each
process has one thread. Kinds of run, each in fresh processes, in turn, --runs times:

    one         one process
    together    N processes that sum their gradients (on GPUs while backward goes on)
    after       the same, but all at its end (on GPUs)
    apart       N processes that don't: what the sum adds to a step is the communication that is
                exposed, waiting for the slower ones included

Efficiency is images/s of N over N times images/s of one. Ratios are those of the turns, in the
median. Needs pip install -e '.[distributed]'.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import spread
from support.machine import gpu_name

KINDS = ("one", "together", "after", "apart")


def compare_processes(options: argparse.Namespace, config: dict) -> None:
    """Run and print all of it. ValueError if there is no mpirun, or a run fails."""
    kinds = [kind for kind in KINDS if options.device != "cpu" or kind != "after"]
    count, runs = options.distributed, {kind: [] for kind in kinds}
    settings = {
        "config": config, "device": options.device, "precision": options.precision,
        "graph": options.graph, "warm_up": options.warm_up, "seconds": options.seconds,
    }  # fmt: skip
    for _ in range(options.runs):
        for kind in kinds:
            processes = 1 if kind == "one" else count
            batch_size = options.batch_size * (processes if options.weak else 1)
            runs[kind].append(start(processes, settings | {"kind": kind, "batch_size": batch_size}))
            found = runs[kind][-1]
            print(f"  {kind:9} {1e3 * found['seconds']:9.2f} ms, {found['rate']:10,.0f} images/s",
                  flush=True)  # fmt: skip
    first = runs["together"][0]
    print(f"{options.variant}, {options.precision}, {first['batch_size']} images a step of {count} "
          f"processes, {runs['one'][0]['batch_size']} of one; {first['machine']}")  # fmt: skip
    turns = list(zip(*(runs[kind] for kind in ("one", "together", "apart")), strict=True))
    speed = [together["rate"] / one["rate"] for one, together, _ in turns]
    exposed = [1 - apart["seconds"] / together["seconds"] for _, together, apart in turns]
    for text, values in (
        (f"images/s of {count} processes over those of one", speed),
        ("efficiency", [value / count for value in speed]),
        ("share of a step that is exposed communication", exposed),
    ):
        print(f"  {text}: {spread(values)}")
    gradients = first["parameters"] * 4
    print(f"  {gradients / 1e6:,.1f} MB of gradients; a sum alone takes "
          f"{1e3 * first['sum_seconds']:.2f} ms")  # fmt: skip


def start(processes: int, settings: dict) -> dict:
    """What a worker of `processes` ranks reports."""
    beside = Path(sys.executable).parent
    mpirun = shutil.which("mpirun", path=str(beside)) or shutil.which("mpirun")
    if mpirun is None:
        raise ValueError("--distributed: there is no mpirun; pip install -e '.[distributed]'")
    script = Path(__file__).parents[1] / "benchmark.py"
    command = [sys.executable, str(script), "--rank", json.dumps(settings)]
    if processes > 1:
        command = [mpirun, "-n", str(processes), *command]
    threads = {"OPENBLAS_NUM_THREADS": "1"} if settings["device"] == "cpu" else {}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | threads)
    if done.returncode:
        raise ValueError(f"--distributed: a run of {processes} failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- one process of them ------------------------------------------------------------------------


def run_rank(settings: dict) -> None:
    """Prints what it found, in JSON."""
    from minimixer import AdamW, Mixer, backend, parallel, record
    from minimixer import functional as F

    with parallel.start() as world:
        device = world.use(settings["device"])
        count = settings["batch_size"]
        world.check_batch_size(count)
        model = Mixer(**settings["config"]).to(device).set_precision(settings["precision"])
        optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        part = world.part(count)
        random = np.random.default_rng(world.rank)
        shape = (part.stop - part.start, model.height, model.width, model.in_channels)
        images = backend.to_device(random.integers(0, 256, shape, dtype=np.uint8), device)
        labels = backend.to_device(random.integers(0, model.num_classes, shape[0]), device)
        together = settings["kind"] in ("together", "after")
        if settings["kind"] == "together":
            world.overlap(model)

        def train_step(images, labels):
            loss = F.cross_entropy(model(images), labels, reduction="sum") / count
            loss.backward()
            if together:
                world.sum_gradients(model)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        def timed(call, seconds):
            """Seconds of a call, from the moment when all ranks begin until all are done."""
            for _ in range(settings["warm_up"]):
                call()
            steps = 1
            while True:
                world.barrier()
                began = time.perf_counter()
                for _ in range(steps):
                    call()
                world.barrier()
                took = world.share(time.perf_counter() - began)
                if took >= seconds:
                    return took / steps
                steps = max(steps + 1, int(1.2 * steps * seconds / took))

        step = record(train_step, model, optimizer, graph=settings["graph"])
        seconds = timed(lambda: step(images, labels), settings["seconds"])
        F.cross_entropy(model(images[:1]), labels[:1]).backward()  # gradients to sum
        sum_seconds = timed(lambda: world.sum_gradients(model), 0.2)
        print(json.dumps({
            "seconds": seconds, "rate": count / seconds, "batch_size": count,
            "sum_seconds": sum_seconds, "parameters": model.num_parameters(),
            "machine": f"{os.cpu_count()} cores, NumPy {np.__version__}" if device == "cpu"
            else gpu_name(device),
        }))  # fmt: skip
