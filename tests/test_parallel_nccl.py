"""Data parallelism between two GPUs of this machine, through NCCL; skipped where there are fewer.

The worker and its faults are those of test_parallel.py.
"""

import numpy as np
import pytest
from test_parallel import RUNS, assert_same, launch, launch_to_fail, needs_mpi, results

from minimixer import backend


def _why_not() -> str | None:
    try:
        backend.check_device("cuda:1")
    except ValueError as error:
        return f"needs two GPUs: {error}"
    from cupy.cuda import nccl

    return None if nccl.available else "needs NCCL: pip install nvidia-nccl-cu12 (or -cu13)"


_reason = _why_not()
pytestmark = [needs_mpi, pytest.mark.skipif(_reason is not None, reason=f"{_reason}")]
GPU = {"device": "cuda"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    runs = {name: run | GPU for name, run in RUNS.items()}
    return results(tmp_path_factory.mktemp("alone"), 1, runs)


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    runs = {name: run | GPU for name, run in RUNS.items()}
    return results(tmp_path_factory.mktemp("eager"), 2, runs)


@pytest.mark.parametrize("name", RUNS)
def test_two_gpus_train_the_same_model_as_one(alone, eager, name):
    assert_same(eager[name], alone[name], name)


def test_a_recorded_step_holds_the_sum_and_has_the_same_bits(tmp_path, eager):
    runs = {name: run | GPU | {"graph": "on"} for name, run in RUNS.items()}
    recorded = results(tmp_path, 2, runs)
    for name in RUNS:
        assert recorded[name]["recordings"] > 0 and eager[name]["recordings"] == 0
        for key in eager[name].keys() - {"recordings"}:
            np.testing.assert_array_equal(recorded[name][key], eager[name][key], f"{name}: {key}")


def test_sums_amid_backward_give_the_same(tmp_path, alone):
    """Up to the order of additions, which NCCL chooses by the length of what it sums."""
    runs = {name: run | GPU | {"graph": "on", "overlap": True, "steps": 50}
            for name, run in RUNS.items() if run.get("accumulate", 1) == 1}  # fmt: skip
    again, found = (results(tmp_path, 2, runs) for _ in range(2))
    for name in runs:
        assert found[name]["recordings"] > 0
        assert_same(found[name], alone[name], name)
        for key, value in found[name].items():
            np.testing.assert_array_equal(value, again[name][key], f"{name}: {key}")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_low_precision(tmp_path, precision):
    run = GPU | {"dtype": "float32", "precision": precision, "graph": "auto", "mixup": 0.0}
    one, two = (results(tmp_path, n, {"run": run})["run"] for n in (1, 2))
    bound = 1e-4 if precision == "float32" else 0.05
    assert np.abs(one["logits"]).max() > 0.1
    np.testing.assert_allclose(two["logits"], one["logits"], rtol=0, atol=bound)


def test_a_checkpoint_goes_from_one_gpu_to_two(tmp_path, alone):
    checkpoint = str(tmp_path / "checkpoint.npz")
    results(tmp_path, 1, {"first": {**GPU, "checkpoint": checkpoint, "save_at": 20}})
    resumed = results(tmp_path, 2, {"sgd": {**GPU, "resume": checkpoint}})["sgd"]
    assert_same(resumed | {"losses": alone["sgd"]["losses"]}, alone["sgd"], "sgd")


@pytest.mark.parametrize("graph", ["off", "on"])
@pytest.mark.parametrize(
    ("kind", "words"), [("error", "rank 1: the disk is full"), ("kill", ""), ("nan", "rank 1: ")]
)
def test_a_fault_on_one_rank_ends_both_while_a_gpu_waits(tmp_path, kind, words, graph):
    _, err = launch_to_fail(tmp_path, 2, GPU | {"graph": graph}, kind=kind, rank=1, step=30)
    assert words in err
    results(tmp_path, 2, {"after": GPU})  # and the GPUs are free again


def test_more_processes_than_gpus():
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    status, _, err = launch(count + 1, GPU)
    assert status != 0 and f"only {count} GPU(s), and each process needs its own" in err
    assert err.count("parallel_worker: ") == 1
