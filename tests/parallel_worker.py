"""What an example script does, small: tests start it with mpirun, and alone.

    mpirun -n 3 python tests/parallel_worker.py '[{"out": "a.npz", "batch_size": 13}, ...]'

Each run of the list trains a model and writes what rank 0 has: weights, logits, losses. "fault"
plants one: {"kind": ..., "rank": ..., "step": ...}.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from minimixer import SGD, AdamW, Mixer, data, parallel, record
from minimixer import functional as F
from minimixer.pictures.augment import mixup, mixup_share
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint

SIZES = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "num_blocks": 2,
         "hidden_dim": 8, "tokens_mlp_dim": 6, "channels_mlp_dim": 12}  # fmt: skip
RUN = {"optimizer": "sgd", "batch_size": 12, "steps": 50, "examples": 27, "dtype": "float64",
       "accumulate": 1, "device": "cpu", "graph": "off", "checkpoint": "", "save_at": -1,
       "resume": "", "fault": {}, "precision": "", "mixup": 0.3, "freeze": False,
       "overlap": False}  # fmt: skip


def make_model(run, device):
    model = Mixer(**SIZES, stochastic_depth=0.5, dtype=run["dtype"], seed=3)
    generator = np.random.default_rng(5)
    for _, parameter in model.named_parameters():  # the head too, which would start at zero
        parameter.data = parameter.data + 0.3 * generator.normal(size=parameter.shape)
    if run["freeze"]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "head" in name or "channel" in name
    model.to(device)
    if run["precision"]:
        model.set_precision(run["precision"])
    return model


def train(world, run):
    fault = run["fault"]
    here = fault.get("rank") == world.rank
    device = world.use(run["device"])
    world.check_batch_size(run["batch_size"])
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (run["examples"], 8, 8, 1), dtype=np.uint8)
    labels = generator.integers(0, 3, run["examples"])
    model = make_model(run, device)
    if run["optimizer"] == "sgd":
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batches = data.Batches(images, labels, run["batch_size"], seed=2, max_shift=1)
    if here and fault["kind"] == "settings":
        run = {**run, "batch_size": 6}
    if here and fault["kind"] == "data":
        images[3, 2, 1, 0] ^= 1
    if here and fault["kind"] == "weights":
        model.head.weight.data = model.head.weight.data + 1e-9
    world.check_same(
        settings={name: value for name, value in run.items() if name != "fault"},
        data={"images": images, "labels": labels},
        code=parallel.code(),
        weights=model.buffer.values,
    )
    step = 0
    if run["resume"] and world.rank == 0:
        step = load_checkpoint(run["resume"], model, optimizer)
    step = world.share(step)
    world.broadcast(model, optimizer)
    frozen = [
        p.window(model.buffer.make_gradients()) for p in model.parameters() if not p.requires_grad
    ]
    for window in frozen:  # what an earlier step may have left there
        window[...] = world.rank + 1

    def train_step(images, targets, *, count, first):
        total = 0.0
        pieces = [len(images) * i // run["accumulate"] for i in range(run["accumulate"] + 1)]
        for start, stop in itertools.pairwise(pieces):
            if start < stop:
                model.random.start_at(first + start)
                logits = model(images[start:stop])
                loss = F.cross_entropy(logits, targets[start:stop], reduction="sum") / count
                loss.backward()
                total += loss.detach()
        world.sum_gradients(model)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    if run["overlap"]:
        world.overlap(model)
    recorded = record(train_step, model, optimizer, graph=run["graph"])
    eager = record(train_step, model, optimizer, graph="off")
    losses, stop = [], False
    model.train()
    while step < run["steps"]:
        if here and fault.get("step") == step:
            if fault.get("mark"):
                Path(fault["mark"]).touch()
            stop = fault["kind"] == "stop"
            plant(fault["kind"], model)
        images, labels = batches.batch(*divmod(step, len(batches)))
        inputs = (images / 255 - 0.5).astype(run["dtype"])
        targets = np.eye(3, dtype=run["dtype"])[labels]
        if run["mixup"]:
            mixing = mixup_share(run["mixup"], seed=4, step=step)
            inputs, targets = (
                mixup(np.concatenate([values[-1:], values]), mixing) for values in (inputs, targets)
            )
        part = world.part(len(images))
        # A rank without examples has nothing to record, and all must record the same steps.
        function = recorded if len(images) >= world.size else eager
        function = function if part.start < part.stop else train_step
        loss = function(inputs[part], targets[part], count=len(images), first=part.start)
        each = world.gather([loss, stop])
        for rank in np.flatnonzero(~np.isfinite(each[:, 0])):
            raise ValueError(f"rank {rank}: the loss became {each[rank, 0]} at step {step + 1}")
        losses.append(each[:, 0].sum())
        step += 1
        stop = each[:, 1].any()  # all know it, and all stop after the same step
        if (stop or step == run["save_at"]) and world.rank == 0:
            save_checkpoint(run["checkpoint"], model, optimizer, step)
            print(f"saved {step}", flush=True)
        if stop:
            return
    world.check_same(weights=model.buffer.values)
    if run["freeze"]:
        kept = [p for p in model.parameters() if not p.requires_grad]
        assert kept and all(
            (p.window(model.buffer.gradients) == world.rank + 1).all() for p in kept
        )

    part = world.part(len(batches.images))  # evaluation: every example once
    empty = part.stop == part.start
    right = [] if empty else model.predict(batches.images[part]) == batches.labels[part]
    right, seen = world.sum([np.sum(right), part.stop - part.start])
    assert seen == run["examples"]
    if world.rank == 0 and run.get("out"):
        np.savez(
            run["out"], **model.state_dict(), logits=model.eval()(batches.images).numpy(),
            losses=losses, right=right, mpi="mpi4py" in sys.modules,
            recordings=recorded.recordings,
        )  # fmt: skip
    print(f"trained {run['steps']} steps, {right:.0f} right")


def plant(kind, model):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "error":
        raise OSError("the disk is full")
    if kind == "bug":
        raise KeyError("lost")
    if kind.startswith("exit"):
        sys.exit(int(kind[4:]))
    if kind == "nan":
        model.stem.bias.data = model.stem.bias.data * np.nan
    if kind == "slow":
        time.sleep(60)


if __name__ == "__main__":
    np.seterr(all="ignore")
    try:
        with parallel.start() as parallel_world:
            for each_run in json.loads(sys.argv[1]):
                train(parallel_world, {**RUN, **each_run})
    except ValueError as problem:
        print(f"parallel_worker: {problem}", file=sys.stderr)
        sys.exit(2)
