"""Data parallelism on the CPU: any number of processes trains the same model, and all end together.

`mpirun` starts parallel_worker.py, a training script; what a process alone would do is the oracle.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from processes import quick

from minimixer import Linear, Mixer, parallel
from minimixer import functional as F
from minimixer.parallel.overlap import Overlap
from minimixer.parallel.same import describe, differences

WORKER = Path(__file__).with_name("parallel_worker.py")
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
_missing = [
    name for name, found in (("mpi4py", importlib.util.find_spec("mpi4py")), ("mpirun", MPIRUN))
    if not found
]  # fmt: skip
needs_mpi = pytest.mark.skipif(
    bool(_missing), reason=f"no {' and no '.join(_missing)}: pip install -e '.[distributed]'"
)
# A thread for each of several processes on few cores; and what Open MPI wants to be told.
ENVIRONMENT = {
    **os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip
RUNS = {
    "sgd": {}, "sgd uneven": {"batch_size": 13, "accumulate": 2}, "adamw": {"optimizer": "adamw"},
    "adamw uneven": {"optimizer": "adamw", "batch_size": 13},
    "frozen": {"optimizer": "adamw", "freeze": True},
}  # fmt: skip


def command(processes, *runs):
    words = [sys.executable, str(WORKER), json.dumps(runs)]
    return words if processes == 1 else [MPIRUN, "-n", str(processes), *words]


def launch(processes, *runs):
    """(status, stdout, stderr) of the worker."""
    return said(command(processes, *runs))


def said(words, env=ENVIRONMENT):
    """(status, stdout, stderr) of a command; what outlasts 60 s fails the test."""
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=60, env=env,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def results(directory, processes, runs):
    """What each run, a dict by name, ended with."""
    files = {name: directory / f"{name} {processes}.npz" for name in runs}
    status, out, err = launch(
        processes, *[{**run, "out": str(files[name])} for name, run in runs.items()]
    )
    others = [line for line in err.splitlines() if "compiling kernels" not in line]
    assert status == 0 and not others, err
    assert out.count("trained") == len(runs)  # by rank 0, and by nobody else
    return {name: dict(np.load(file)) for name, file in files.items()}


def assert_same(run, expected, name):
    assert set(run) == set(expected) and np.abs(expected["logits"]).max() > 0.1
    assert run["right"] == expected["right"]
    for key, value in expected.items():
        if value.dtype.kind == "f":
            # Adam magnifies the rounding noise of a gradient that is zero.
            bound = 1e-9 if "adamw" in name and key.endswith("token_mixing.b2") else 1e-12
            message = f"{name}: {key}"
            np.testing.assert_allclose(run[key], value, rtol=0, atol=bound, err_msg=message)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone"), 1, RUNS)


# ---- the same model, whatever the number of processes -------------------------------------------


def test_a_process_alone_does_without_mpi(alone):
    assert not any(run["mpi"] for run in alone.values())
    assert all(run["losses"][-5:].mean() < run["losses"][:5].mean() for run in alone.values())


@needs_mpi
@pytest.mark.parametrize("processes", quick([2, 3, 4], 3))
def test_any_number_of_processes_trains_the_same_model(tmp_path, alone, processes):
    together = results(tmp_path, processes, RUNS)
    for name in RUNS:
        assert together[name]["mpi"]
        assert_same(together[name], alone[name], name)


@needs_mpi
def test_what_one_rank_stops_resumes_with_any_number_of_processes(tmp_path, alone):
    """In float64 to 1e-12, and bit for bit with as many processes as before."""
    checkpoint, name = str(tmp_path / "checkpoint.npz"), "adamw uneven"
    run = RUNS[name]
    stop = {"checkpoint": checkpoint, "fault": {"kind": "stop", "rank": 1, "step": 18}}
    assert launch(3, {**run, **stop}) == (0, "saved 19\n", "")
    for processes in (1, 2, 3):
        resumed = results(tmp_path, processes, {name: {**run, "resume": checkpoint}})[name]
        assert_same(resumed | {"losses": alone[name]["losses"]}, alone[name], name)
    straight = results(tmp_path, 3, {name: run})[name]
    for key in straight.keys() - {"losses"}:
        np.testing.assert_array_equal(resumed[key], straight[key])


SUMS = """
import numpy as np
from minimixer import parallel
with parallel.start() as world:
    for size in (0, 1, 2, 3, 7, 1000, 5, 100_000):
        for dtype in ("float32", "float64"):
            arrays = [np.random.default_rng(rank).normal(size=size).astype(dtype)
                      for rank in range(world.size)]
            mine = arrays[world.rank].copy()
            world._all_reduce(mine)
            expected = arrays[0].copy()
            for other in arrays[1:]:
                expected += other
            assert mine.tobytes() == expected.tobytes(), (size, dtype)
    total = world.sum([world.rank, 0.5, world.rank == 1])
    assert total.tolist() == [3, 1.5, 1] and world.any(world.rank == 2) and not world.any(False)
    assert world.share(world.rank) == 0 and world.gather([world.rank])[:, 0].tolist() == [0, 1, 2]
    world.barrier()
    print("all")
"""


@needs_mpi
def test_sums_are_added_from_rank_0_on():
    assert said([MPIRUN, "-n", "3", sys.executable, "-c", SUMS]) == (0, "all\n", "")


# ---- all end together; test_parallel_examples.py kills a rank -----------------------------------


def launch_to_fail(directory, processes, run, **fault):
    """(stdout, stderr) of a run in which a fault is planted; it must end within 10 s of it."""
    mark = directory / "mark"
    fault |= {"mark": str(mark)}
    status, out, err = launch(processes, {**run, "fault": fault})
    assert status != 0 and "trained" not in out
    assert time.time() - mark.stat().st_mtime < 10
    return out, err


@needs_mpi
@pytest.mark.parametrize("kind, words", [
    ("error", "rank 2: the disk is full"),
    pytest.param("bug", "rank 2: Traceback.*KeyError: 'lost'", marks=pytest.mark.slow),
    pytest.param("exit3", r"rank 2: ended alone \(SystemExit\(3\)\)", marks=pytest.mark.slow),
    ("exit0", r"rank 2: ended alone \(SystemExit\(0\)\)"),
])  # fmt: skip
def test_an_error_on_one_rank_ends_all_while_they_wait_in_a_sum(tmp_path, kind, words):
    _, err = launch_to_fail(tmp_path, 3, {}, kind=kind, rank=2, step=5)
    assert len(re.findall(f"(?s){words}", err)) == err.count("rank 2: ") == 1, err
    assert ("Traceback" in err) == (kind == "bug")


@needs_mpi
@pytest.mark.parametrize("run, words", [
    ({"fault": {"kind": "nan", "rank": 1, "step": 5}}, "rank 1: the loss became nan at step 6"),
    ({"fault": {"kind": "settings", "rank": 1}},
     "settings.batch_size is 6 on rank 1, but 12 on rank 0"),
    ({"fault": {"kind": "data", "rank": 1}}, "data.images is uint8 (27, 8, 8, 1) "),
    ({"fault": {"kind": "weights", "rank": 1}}, "weights is float64 "),
    ({"batch_size": 1}, "2 processes for a batch of 1: each needs an example"),
    ({"device": "cuda:1"}, "cuda:1 is one GPU, and 2 processes need their own"),
], ids=["nan", "settings", "data", "weights", "batch", "device"])  # fmt: skip
def test_what_all_ranks_find_is_said_once_in_one_sentence(run, words):
    began = time.monotonic()
    status, out, err = launch(2, run)
    assert status != 0 and time.monotonic() - began < 10
    assert err.startswith("parallel_worker: ") and words in err.splitlines()[0]
    assert err.count("parallel_worker: ") == 1 and "Traceback" not in err
    assert "rank 1" in err or "fault" not in run
    assert "trained" not in out


@needs_mpi
def test_no_process_is_left_when_mpirun_itself_is_ended():
    words = command(2, {"fault": {"kind": "slow", "rank": 1, "step": 5}})
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(words, env=ENVIRONMENT, **null)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0


# ---- a world of one, and what can be seen without others ----------------------------------------


def test_a_world_of_one_changes_nothing(capsys):
    model = Linear(3, 2)
    model.weight.grad = np.ones((3, 2), np.float32)
    with pytest.raises(KeyError), parallel.start() as world:
        print("heard")
        assert (world.rank, world.size, world.use("cpu"), world.device) == (0, 1, "cpu", "cpu")
        assert world.part(5) == slice(0, 5) and world.share({"a": 1}) == {"a": 1}
        world.check_batch_size(1)
        world.check_same(a=1)
        world.broadcast(model)
        world.sum_gradients(model)
        world.barrier()
        assert model.weight.grad.sum() == 6 and model.bias.grad is None
        assert world.any(True) and not world.any(False)
        np.testing.assert_array_equal(world.sum([1.5, True]), [1.5, 1])
        raise KeyError
    assert capsys.readouterr().out == "heard\n" and "mpi4py" not in sys.modules


def test_a_model_on_another_device_is_refused():
    world, model = parallel.World(), Linear(3, 2)
    world._all_reduce, world.device = pytest.fail, "cuda:1"
    with pytest.raises(ValueError, match="the model is on cpu, this rank's device: cuda:1"):
        world.sum_gradients(model)


@pytest.mark.parametrize("count", [0, 1, 2, 12, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_parts_are_even_and_together_the_whole(count, size):
    world, found = parallel.World(), []
    world.size = size
    for world.rank in range(size):
        found.append(range(count)[world.part(count)])
    assert [number for part in found for number in part] == list(range(count))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    if size > count:
        with pytest.raises(ValueError, match=f"{size} processes for a batch of {count}"):
            world.check_batch_size(count)


def test_what_differs_is_named():
    same = describe({"a": {"b": 1, "c": {"d": None}}, "e": np.arange(3)})
    assert list(same) == ["a.b", "a.c.d", "e"] and differences([same, dict(same)]) == ""
    other = describe({"a": {"b": 1.0, "c": {"d": None}}, "e": np.arange(3.0)})
    text = differences([same, other, other, same])
    assert "a.b is 1.0 on ranks 1, 2, but 1 on rank 0" in text and "e is float64 (3,) " in text
    assert "missing" in differences([same, {}]) and "a.c" not in text
    for a, b in (("x" * 100, "x" * 99 + "y"), (np.zeros(2), -np.zeros(2)), (True, 1)):
        assert differences([describe({"it": a}), describe({"it": b})]).startswith("it is ")
    long = describe({"it": "x" * 1000})["it"]
    assert len(long) < 50
    assert describe({"it": np.ones((4, 4)).T[::2]}) == describe({"it": np.ones((2, 4))})


def test_the_code_is_minimixers_sources_and_the_script():
    code = parallel.code()
    assert code == parallel.code() and {"minimixer", "script", "python", "numpy"} <= set(code)
    assert all(len(text) >= 5 for text in code.values())


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_without_mpi4py_it_is_said_what_to_install(monkeypatch, name):
    for other in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    assert parallel.start().size == 1
    monkeypatch.setenv(name, "4")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"4 processes talk .*: pip install mpi4py mpich"):
        parallel.start()


@needs_mpi
def test_an_mpi_other_than_the_launchers_is_found():
    code = "from minimixer import parallel; parallel.start()"
    environment = {**ENVIRONMENT, "OMPI_COMM_WORLD_SIZE": "3"}  # started by another MPI's mpirun
    status, _, err = said([sys.executable, "-c", code], env=environment)
    assert status and "knows of 1: it is another MPI than the launcher's" in err


@needs_mpi
def test_ranks_share_the_cores_of_a_machine():
    code = (
        "from minimixer import parallel\nfrom minimixer.kernels.cpu import threads\n"
        "with parallel.start() as world:\n"
        "    print(world.gather([threads._blas()[0]() if threads._blas() else 1]).ravel().max())"
    )
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "OPENBLAS_NUM_THREADS"}
    status, out, err = said([MPIRUN, "-n", "2", sys.executable, "-c", code], env=environment)
    assert status == 0, err
    assert float(out) <= max(1, len(os.sched_getaffinity(0)) // 2)


# ---- sums amid backward, without a GPU ----------------------------------------------------------


@pytest.fixture
def capturing(monkeypatch):
    """A stand-in for CuPy, as far as overlap.py asks for it: [is a graph being recorded?]"""
    state = [True]

    class Stream(contextlib.nullcontext):
        def __init__(self, non_blocking=True, priority=0):
            super().__init__()

        def is_capturing(self):
            return state[0]

        def record(self, event=None):
            pass

        wait_event = record

    cuda = types.SimpleNamespace(Stream=Stream, get_current_stream=Stream)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    return state


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 12])
def test_all_is_summed_once_and_when_it_is_final(num_blocks, checkpoint_blocks, capturing):
    model = Mixer(8, 4, num_blocks, 8, 4, 8, in_channels=1, num_classes=3,
                  checkpoint_blocks=checkpoint_blocks)  # fmt: skip
    summed, images = [], np.random.default_rng(0).random((2, 8, 8, 1), "float32")

    def all_reduce(part):
        whole = model.buffer.gradients
        start = (part.ctypes.data - whole.ctypes.data) // part.itemsize
        summed.append((start, start + part.size, part.copy()))

    overlap = Overlap(model, all_reduce)

    def step():
        summed.clear()
        for parameter in model.parameters():
            parameter.grad = None
        F.cross_entropy(model(images), [0, 1]).backward()

    def whole_is_summed():
        parts = sorted(summed, key=lambda part: part[0])
        assert [part[0] for part in parts] == [0, *(part[1] for part in parts[:-1])]
        assert parts[-1][1] == model.buffer.size
        for start, stop, values in parts:
            np.testing.assert_array_equal(values, model.buffer.gradients[start:stop])

    for _ in range(2):
        step()
        assert overlap.finish() == (num_blocks > 1)
        if num_blocks > 1:
            whole_is_summed()
            assert len(summed) == min(num_blocks, 4) + 1
    step()  # a recording that fails behind backward, and then a step without
    capturing[0] = False
    step()
    assert not overlap.finish() and not summed
    capturing[0] = True
    step()
    if overlap.finish():
        whole_is_summed()
