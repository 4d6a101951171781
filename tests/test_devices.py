"""Several GPUs, and one that is full."""

import sys

import numpy as np
import pytest
from conftest import _cuda, _no_gpu

from minimixer import AdamW, Mixer, backend, ops
from minimixer import functional as F

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
