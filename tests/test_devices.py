"""Asking for a GPU where there is none, one sentence each; several GPUs, and one that is full."""

import builtins
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import _cuda, _no_gpu

from minimixer import AdamW, Mixer, backend, ops
from minimixer import functional as F
from minimixer.engine import devices


def fake_cupy(count=None, error=None, compile_error=None, of="float32", version="14.2.0"):
    """A module with as much of CuPy as check_device touches."""

    class CUDARuntimeError(RuntimeError):
        pass

    class CompileException(Exception):
        pass

    def get_device_count():
        if error is not None:
            raise CUDARuntimeError(error)
        return count

    class Numbers:
        def __init__(self, dtype="float32"):
            self.dtype = dtype

        def __gt__(self, other):
            return Numbers("bool")

        def sum(self):
            if compile_error is not None and self.dtype == of:
                raise CompileException(compile_error)

    cupy, some = types.ModuleType("cupy"), types.SimpleNamespace
    cupy.__version__, cupy.arange = version, lambda *_, dtype: Numbers(dtype)
    cupy.cuda = some(
        runtime=some(CUDARuntimeError=CUDARuntimeError, getDeviceCount=get_device_count),
        compiler=some(CompileException=CompileException),
    )
    return cupy


CASES = {  # what fake_cupy is given, what is said, and what is advised
    "old": ({"count": 1, "version": "13.6.0"}, "CuPy 13.6.0 is too old, 14.2 is needed", "install"),
    "no driver": ({"error": "cudaErrorInsufficientDriver: CUDA driver version is insufficient"},
                  "driver is missing or too old", "nvidia-smi"),
    "no GPU": ({"error": "cudaErrorNoDevice: no CUDA-capable device"}, "no NVIDIA GPU",
               "nvidia-smi"),
    "zero GPUs": ({"count": 0}, "no NVIDIA GPU", "nvidia-smi"),
    "no headers": ({"count": 1, "compile_error": "catastrophic error: cannot open cuda_fp16.h"},
                   "can't compile for the GPU (catastrophic error: cannot open cuda_fp16.h)",
                   "'cupy-cuda12x[ctk]>=14.2'"),
    "headers of another CUDA": (  # which the sum of floats doesn't read
        {"count": 1, "of": "bool", "compile_error": "cuda/std/limits(9): error: no\n" * 142},
        "can't compile for the GPU (cuda/std/limits(9): error: no)", "'cupy-cuda12x[ctk]>=14.2'"),
}  # fmt: skip


@pytest.fixture
def uncached(monkeypatch):
    devices._count_gpus.cache_clear()
    yield monkeypatch
    devices._count_gpus.cache_clear()


@pytest.mark.parametrize("case", CASES)
def test_each_reason_has_its_sentence(case, uncached):
    settings, says, advice = CASES[case]
    uncached.setitem(sys.modules, "cupy", fake_cupy(**settings))
    with pytest.raises(ValueError) as caught:
        backend.check_device("cuda")
    message = str(caught.value)
    assert says in message and advice in message and "\n" not in message


@pytest.mark.parametrize("error, says", [
    (ModuleNotFoundError("No module named 'cupy'"), "which is not installed"),
    (ImportError("libcublas.so.12: no such file"), "can't be loaded (libcublas.so.12"),
])  # fmt: skip
def test_cupy_missing_or_broken(error, says, uncached):
    original = builtins.__import__

    def refuse(name, *rest):
        if name == "cupy":
            raise error
        return original(name, *rest)

    uncached.delitem(sys.modules, "cupy", raising=False)
    uncached.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError) as caught:
        backend.check_device("cuda:0")
    assert says in str(caught.value) and "pip install 'cupy-cuda12x[ctk]" in str(caught.value)


def test_the_number_of_a_gpu_is_checked(uncached):
    uncached.setitem(sys.modules, "cupy", fake_cupy(count=2))
    assert backend.check_device("cuda") == "cuda:0" and backend.check_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match=r"no cuda:2: this machine has 2 GPU"):
        backend.check_device("cuda:2")


def test_blocks_cover_a_range_once(device):
    for size in (0, 1, 32768, 32769, 100_000):
        array = backend.to_device(np.zeros(size, "float32"), device)
        for start in (0, size // 3):
            covered = [i for part in backend.blocks(array, start) for i in range(size)[part]]
            assert covered == list(range(start, size))


def test_import_is_quick_and_touches_no_gpu():
    code = """if True:
        import sys, time, numpy
        start = time.perf_counter()
        import minimixer
        print(time.perf_counter() - start)
        assert not {'cupy', 'matplotlib', 'numpy.random'} & set(sys.modules)
    """
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(3)]
    assert min(map(float, runs)) < 0.3


# ---- where there are some ----------------------------------------------------------------------

SIZES = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "num_blocks": 2,
         "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32}  # fmt: skip
IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype("float32")
LABELS = np.array([0, 1, 2, 0, 1, 2])


def trained(model: Mixer, optimizer: AdamW) -> None:
    F.cross_entropy(model(IMAGES), LABELS).backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    optimizer.zero_grad()


def gpus() -> int:
    return 0 if _no_gpu else sys.modules["cupy"].cuda.runtime.getDeviceCount()


@pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_two_models_on_two_gpus_take_turns(precision):
    """Whichever was used last, each model computes on its own GPU, and the same bits."""
    alone = Mixer(**SIZES).to("cuda:0").set_precision(precision)
    optimizer = AdamW(alone.parameters(), lr=1e-2)
    for _ in range(3):
        trained(alone, optimizer)
    models = [Mixer(**SIZES).to(f"cuda:{i}").set_precision(precision) for i in (0, 1)]
    optimizers = [AdamW(model.parameters(), lr=1e-2) for model in models]
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            trained(model, optimizer)
    for i, model in enumerate(models):
        assert model.device == f"cuda:{i}" and model(IMAGES).device == f"cuda:{i}"
        for name, value in model.state_dict().items():
            assert value.tobytes() == alone.state_dict()[name].tobytes(), name
        assert (model.predict(IMAGES) == alone.predict(IMAGES)).all()


@pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")
def test_tensors_of_two_gpus_do_not_mix():
    a, b = (backend.to_device(np.ones(3), f"cuda:{i}") for i in (0, 1))
    with pytest.raises(TypeError, match=r"different devices.*cuda:0.*cuda:1"):
        ops.add(a, b)


@pytest.mark.parametrize("device", [_cuda])
def test_a_full_gpu_says_what_did_not_fit(device):
    model = Mixer(**SIZES).to(device)
    pool = sys.modules["cupy"].get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(size=pool.total_bytes() + (64 << 20))
    try:
        with pytest.raises(MemoryError, match=r"\(30000, 8, 8, 1\).*float32.*fewer at a time"):
            model(np.zeros((30000, 8, 8, 1), "float32"))
        assert model(IMAGES).shape == (6, 3)  # and goes on
    finally:
        pool.set_limit(size=before)
