"""benchmark.py's own side: a Mixer that is timed in a fresh process, as the peers are."""

import os
import statistics

import numpy as np

from benchmarks.step_profile import large_product, profile, time_products
from benchmarks.timing import time_steps
from minimixer import AdamW, Mixer, backend, no_grad, record
from minimixer import functional as F
from support.machine import Growth, gpu_name, pool_peak


def run_minimixer(problem_file: str, result_file: str, settings: dict) -> dict:
    problem = dict(np.load(problem_file))
    device = backend.check_device(settings["device"])
    memory = Memory(device)
    images = backend.to_device(problem.pop("images"), device)
    labels = backend.to_device(problem.pop("labels"), device)
    model = Mixer(**settings["config"], seed=None).to(device).set_precision(settings["precision"])
    model.load_state_dict(problem)
    model.checkpoint_blocks = settings["checkpoint_blocks"]
    optimizer = AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])

    def train(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def gradients(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.zero_grad()
        return loss

    def inference(images, labels):
        with no_grad():
            return model(images)

    report: dict = {"machine": memory.machine}
    if settings["check"]:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        found = {f"grad.{k}": backend.to_numpy(p.grad) for k, p in model.named_parameters()}
        np.savez(result_file, logits=logits.numpy(), loss=loss.item(), **found)
        optimizer.zero_grad()
        del logits, loss, found
    for work in settings["work"]:
        function = {"train": train, "gradients": gradients, "inference": inference}[work]
        inputs = images.astype(model.activation_dtype) if work == "inference" else images
        recorded = record(function, model, optimizer, graph=settings["graph"])
        step, plainly = (finished(f, inputs, labels, device) for f in (recorded, function))
        memory.forget()
        times = measure(step, settings)
        peaks = memory.peaks(step, recorded)
        report[work] = {"ms": 1e3 * statistics.median(times), "steps": len(times), **peaks}
        if work != settings["work"][0]:  # starts with what the first has left
            report[work].pop("growth_bytes", None)
        del step, recorded  # and their memory
        if settings["products"]:
            report[work]["products_ms"] = time_products(plainly, device)
            report["large_product"] = large_product(model, device)
        if settings["profile"]:
            report[work]["profile"] = profile(plainly, device)
    return report


def finished(function, images, labels, device: str):
    """A step without arguments, which ends when the device is done."""

    def step():
        function(images, labels)
        backend.synchronize(device)

    return step


def measure(step, settings: dict) -> list[float]:
    for _ in range(settings["warm_up"]):
        step()
    return time_steps(step, settings)


class Memory:
    """The peak of bytes in use by CuPy's pool during a step; on the CPU, by how much the process
    grew since `forget`. A recorded step needs all that its own pool holds."""

    def __init__(self, device: str):
        self.machine = f"{os.cpu_count()} cores, NumPy {np.__version__}"
        self.pool = None
        if device != "cpu":
            import cupy

            cupy.cuda.Device(int(device[5:])).use()
            self.machine = f"{gpu_name(device)}, NumPy {np.__version__}"
            self.pool = cupy.get_default_memory_pool()

    def forget(self) -> None:
        if self.pool is not None:
            self.pool.free_all_blocks()
        self.growth = Growth()

    def peaks(self, step, recorded) -> dict[str, int]:
        pool = self.pool
        if pool is None:
            return {"growth_bytes": self.growth.bytes()}
        if recorded.recordings:
            own, others = recorded.reserved_bytes, pool.total_bytes()
            return {"peak_bytes": own + pool.used_bytes(), "reserved_bytes": own + others}
        pool.free_all_blocks()
        peak = pool_peak(lambda: (step(), step()))
        return {"peak_bytes": peak, "reserved_bytes": pool.total_bytes()}
