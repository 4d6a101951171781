"""Recorded steps against the same steps run as they are: the same bits, whatever changes.

The bodies run on both devices; on the CPU `record` runs the function, and must not disturb it.
"""

import gc
import itertools
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from test_oracles import SMALL, Case, cases, examples
from test_precision import CASE, UNIT

import minimixer
from minimixer import SGD, AdamW, Dropout, Linear, Mixer, Module, Tensor, fetch, kernels, record
from minimixer import functional as F
from minimixer.backend import synchronize, to_device, to_numpy
from minimixer.graph.recorded import MOST_CHANGES, MOST_RECORDINGS
from minimixer.graph.staging import Inbox


@pytest.fixture(autouse=True)
def no_surprises():
    """A step that could not be recorded would agree with itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def batches(case: Case, count: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every fourth is smaller, as the last of an epoch may be."""
    found = []
    for i in range(count):
        case_i = case._replace(seed=case.seed + i)
        images = (40 * case_i.images() + 128).clip(0, 255).astype("uint8")
        size = case.batch if i % 4 < 3 else max(1, case.batch // 2)
        found.append((images[:size], case_i.labels()[:size]))
    return found


class Training:
    """A model, its optimizer and a recorded step, and all that can be known about them."""

    def __init__(self, device: str, graph: str, case: Case = CASE, clip=0.0, accumulate=1,
                 optimizer=AdamW, **changes: Any):  # fmt: skip
        self.model = case.model(device, "float32", **changes)
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)
        self.clip, self.accumulate = clip, accumulate
        self.run = record(self.step, self.model, self.optimizer, graph=graph)
        self.said: list[Any] = []

    def step(self, images, labels):
        total = 0.0
        for i in range(self.accumulate):
            start, stop = ((i + k) * len(images) // self.accumulate for k in (0, 1))
            self.model.random.start_at(start)
            scores = self.model(images[start:stop])
            loss = F.cross_entropy(scores, labels[start:stop], reduction="sum") / len(images)
            loss.backward()
            total += loss.detach()
        norm = self.optimizer.clip_grad_norm(self.clip) if self.clip else scores
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": total, "norm": norm}

    def train(self, data) -> "Training":
        for number, (images, labels) in enumerate(data):
            self.optimizer.lr_factor = 1 / (1 + number)
            result = self.run(images, labels)
            self.said.append(fetch(result["loss"], result["norm"]))
        return self

    def state(self) -> list[bytes]:
        arrays = [self.model.buffer.values, *self.optimizer.state.values(), self.optimizer.control]
        arrays += [self.model.random.counters, self.model.buffer.loss_scale]
        said = [value for fetched in self.said for value in fetched.results()]
        return [to_numpy(a).tobytes() for a in [*arrays, *said]]


def eager_and_recorded(run):
    """run("off") and run("auto"), which must say the same."""
    eager, recorded = run("off"), run("auto")
    assert eager == recorded
    return eager


def compare(device: str, data: Any, **kind: Any) -> Training:
    plain, recorded = (Training(device, graph, **kind).train(data) for graph in ("off", "auto"))
    assert plain.state() == recorded.state()
    assert not np.isnan(recorded.said[-1].results()[0])
    assert plain.run.recordings == 0
    assert (recorded.run.recordings > 0) == (device != "cpu")
    return recorded


def agree(run, function, inputs) -> None:
    """The recorded function says of each input what the function says."""
    for images in inputs:
        assert (run(images).numpy() == function(images).numpy()).all()


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", list(UNIT))
@pytest.mark.parametrize(
    "kind",
    [{}, {"stochastic_depth": 0.4, "clip": 0.5}, {"accumulate": 3, "stochastic_depth": 0.4},
     {"checkpoint_blocks": True, "stochastic_depth": 0.4}, {"optimizer": SGD, "clip": 0.1}],
    ids=["plain", "clip", "accumulate", "checkpoint", "sgd"],
)  # fmt: skip
def test_recorded_training_has_the_bits_of_eager(device, precision, kind):
    if precision == "tf32" and device == "cpu":
        pytest.skip("tf32 is a GPU's")
    if precision == "bfloat16":
        pytest.importorskip("ml_dtypes")
    recorded = compare(device, batches(CASE), precision=precision, **kind)
    assert device == "cpu" or recorded.run.recordings == 2  # the whole batch and the smaller one


def test_of_any_size(device):
    """Also those that vector loads can't take."""

    @examples(device, cpu=5, cuda=12)
    @example(Case(SMALL, 3, 2))
    @given(cases())
    def run(case):
        compare(device, batches(case, 9), case=case, stochastic_depth=0.3)

    run()


def test_float16_skips_the_same_steps(device):
    """The scale starts too high: the first steps overflow, and change nothing."""

    def run(graph):
        training = Training(device, graph, precision="float16")
        training.model.buffer.loss_scale[0] = 2.0**30
        training.train(batches(CASE, 40)[::2])
        return float(training.optimizer.control[1]), training.state()

    assert 0 < eager_and_recorded(run)[0] < 20


def test_nan_shows_in_the_same_step(device):
    data = [(images.astype("float32"), labels) for images, labels in batches(CASE)]

    def run(graph):
        training = Training(device, graph).train(data[:5])
        training.model.stem.bias.data = np.full(32, np.nan)
        training.train(data[5:6])
        return [str(f.results()[0]) for f in training.said]

    found = np.array(eager_and_recorded(run), float)
    assert np.isfinite(found[:5]).all() and np.isnan(found[5])


CHANGES = {
    "mode": lambda t: t.model.eval(),
    "learning rate": lambda t: setattr(t.optimizer, "lr", 0.3),
    "momentum": lambda t: setattr(t.optimizer, "betas", (0.5, 0.5)),
    "precision": lambda t: t.model.set_precision("float16"),
    "weights": lambda t: t.model.load_state_dict(
        {k: v + 0.1 for k, v in t.model.state_dict().items()}),
    "one weight": lambda t: setattr(t.model.stem.bias, "data", np.ones(32)),
    "frozen": lambda t: setattr(t.model.blocks[1].norm1.weight, "requires_grad", False),
    "kernels": lambda t: kernels.use("reference"),
    "dropout": lambda t: setattr(t.model.blocks[1].drop1, "p", 0.9),
    "normalization": lambda t: t.model.set_normalization(0.1, 0.2),
    "epsilon": lambda t: setattr(t.model.norm, "epsilon", 0.5),
    "seed": lambda t: setattr(t.model.random, "seed", 9),
    "step": lambda t: t.model.random.set(77),
    "fewer blocks": lambda t: t.model.blocks.pop(),
    "turned in place": lambda t: t.model.blocks.reverse(),
    "norms swapped": lambda t: swap(t.model.blocks[0], "norm1", "norm2"),
    "another block": lambda t: setattr(t.model, "blocks", t.model.blocks[::-1]),
    "checkpointing": lambda t: setattr(t.model, "checkpoint_blocks", True),
    "moved": lambda t: (t.model.to("cpu"), t.model.to(t.device)),
    "gradients": lambda t: t.model(batches(CASE)[0][0]).sum().backward(),
    "own step": lambda t: t.step(*(to_device(a, t.device) for a in batches(CASE)[0])),
    "optimizer state": lambda t: t.optimizer.load_state_dict(
        {**t.optimizer.state_dict(), "step": 3}),
}  # fmt: skip

BACK = {"mode": lambda t: t.model.train(), "kernels": lambda t: kernels.use("auto")}


def swap(module: Module, a: str, b: str) -> None:
    one, other = getattr(module, a), getattr(module, b)
    one.weight.data = np.full(one.weight.shape, 2.0)
    setattr(module, a, other)
    setattr(module, b, one)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(device, change):
    """Steps recorded before it must not be replayed as if nothing had happened; back and forth."""
    data = batches(CASE, 4)
    if change == "kernels":  # CuPy's own products can't be recorded
        warnings.simplefilter("ignore")

    def run(graph):
        kernels.use("auto")
        training = Training(device, graph, stochastic_depth=0.3)
        training.device = device
        before = training.train(data * 3).state()
        CHANGES[change](training)
        if change in BACK:
            training.train(data * 3)
            BACK[change](training)
        training.train(data * 3)
        assert training.state() != before
        return training.state()

    try:
        eager_and_recorded(run)
    finally:
        kernels.use("auto")


class Tied(Module):
    """One weight used by a product twice and by plain arithmetic as well."""

    def __init__(self):
        self.layer = Linear(8, 8, seed=1)
        self.dropout = Dropout(0.2)
        self.parameters()

    def forward(self, x):
        y = self.layer(F.gelu(self.layer(self.dropout(x))))
        return (y * y).mean() + (self.layer.weight * self.layer.weight).sum() * 0.1


def test_shared_weights(device):
    """Gradients that are computed beside the main line, and added to from it."""

    def train(graph):
        model = Tied().to(device)
        optimizer = AdamW(model.parameters(), lr=0.01)

        def step(x):
            loss = model(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run = record(step, model, optimizer, graph=graph)
        inputs = [np.full((4, 8), i, dtype="float32") for i in range(9)]
        return [run(x).item() for x in inputs], to_numpy(model.layer.weight.data).tobytes()

    eager_and_recorded(train)


def test_gradients_add_up_over_calls(device):
    def sums(graph):
        model = CASE.model(device, "float32")

        def add(images, labels):
            F.cross_entropy(model(images), labels).backward()

        run, found = record(add, model, graph=graph), []
        for _ in range(5):
            for images, labels in batches(CASE, 3):
                run(images, labels)
            found.append(to_numpy(model.buffer.gradients).tobytes())
            assert all(p.grad is not None for p in model.parameters())
            model.zero_grad()
        assert found == found[:1] * 5
        # Overwritten first, added to after that: two recordings.
        assert run.recordings == (0 if device == "cpu" or graph == "off" else 2)
        return found

    eager_and_recorded(sums)


def test_parts_of_a_batch_make_its_gradient(device):
    """To rounding in float64, dropped blocks included: a draw belongs to its example."""
    images, labels = CASE.images(), CASE.labels()
    found = []
    for count in (1, 2, 4, 6):
        model = CASE.model(device, "float64", stochastic_depth=0.5)
        borders = [len(images) * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(borders):
            model.random.start_at(start)
            scores = model(images[start:stop])
            (F.cross_entropy(scores, labels[start:stop], reduction="sum") / len(images)).backward()
        found.append(to_numpy(model.buffer.gradients))
    assert abs(found[0]).max() > 1e-2
    for other in found[1:]:
        assert abs(other - found[0]).max() <= 1e-12


# ---- inference, settings, results ---------------------------------------------------------------


def test_inference_settings_and_results_of_any_form(device):
    model = CASE.model(device, "float32").eval()
    model.names = {"a", "set"}  # which has no hash

    @minimixer.no_grad()
    def scores(images, factor=1.0):
        y = model(images) * factor
        return {"a": Scores(y, [y.data, y * 2]), "b": None}

    run = record(scores, model)
    for images, _ in batches(CASE, 3) * 3:
        for factor in (1.0, 2.0):
            expected = scores(to_device(images, device), factor=factor)["a"].scores.numpy()
            result = run(images, factor=factor)
            a, (b, c) = result["a"]
            assert type(a) is Tensor and not a.requires_grad and result["a"].scores is a
            assert result["b"] is None and (a.numpy() == expected).all()
            assert (to_numpy(b) == expected).all() and (c.numpy() == 2 * expected).all()
    assert run.recordings == (0 if device == "cpu" else 2)
    run(Tensor(images.astype("float32"), device=device))  # Tensors, too


class Scores(NamedTuple):
    scores: Tensor
    more: list


class Scaled(Module):
    """With what is no Parameter: a Tensor, a number in a tuple, one in a dict."""

    def __init__(self, device: str):
        self.layer = Linear(3, 2).to(device)
        self.shift = Tensor(np.ones(2, "float32"), device=device)
        self.factors, self.options = (1.0, [2.0]), {"divide by": 1.0}

    def forward(self, x):
        x = self.layer(x) * self.factors[0] * self.factors[1][0] / self.options["divide by"]
        return x + self.shift


def test_what_a_module_holds(device):
    model, x = Scaled(device), to_device(np.ones((4, 3), "float32"), device)
    run, said = record(lambda x: model(x), model), []
    for change in (
        lambda: None,
        lambda: setattr(model, "shift", Tensor(np.zeros(2, "float32"), device=device)),
        lambda: model.factors[1].__setitem__(0, 3.0),
        lambda: model.options.update({"divide by": 4.0}),
        lambda: setattr(model, "factors", (7.0, [2.0])),
    ):
        change()
        agree(run, model, [x] * 3)
        said.append(run(x).numpy().tolist())
    assert all(a != b for a, b in itertools.pairwise(said))
    assert device == "cpu" or run.recordings == 5


def test_one_recording_inside_another(device):
    model = CASE.model(device, "float32").eval()
    inner = record(lambda x: model(x) * 2, model)
    outer = record(lambda x: inner(x) + 1, model)
    agree(outer, lambda x: model(x) * 2 + 1, [images for images, _ in batches(CASE, 3) * 3])


def test_inputs_may_change_at_once(device):
    """Copies are queued; what was given may be written over as soon as the call is back."""
    model = CASE.model(device, "float32").eval()
    run = record(lambda x: model(x).sum(axis=1), model)
    images = np.empty((6, 16, 24, 3), dtype="float32")
    found = []
    for i in range(30):
        images[...] = np.random.default_rng(i).standard_normal(images.shape)
        expected = model(images).sum(axis=1).numpy().copy()
        found.append((fetch(run(images)), expected))
    for asked, expected in found:
        assert (asked.results()[0] == expected).all()


def test_a_result_that_nobody_waits_for(gpu):
    """Its memory is not given to the next one while the GPU still copies."""
    import cupy
    import cupyx

    with cupy.cuda.Device(int(gpu[5:] or 0)):
        busy = cupy.zeros(1 << 26, "float32")
        ones, twos = cupy.ones(1 << 20, "float32"), cupy.full(1 << 20, 2, "float32")
        for _ in range(50):
            busy += 1
        fetch(ones)  # and dropped
        asked = fetch(twos)
        asked.results()
        for _ in range(50):
            busy += 1
        fetch(ones)
        mine = cupyx.empty_pinned(ones.shape, ones.dtype)
        mine[...] = 3
        cupy.cuda.get_current_stream().synchronize()
        assert (mine == 3).all()


def test_fetched_results_are_of_their_moment(device):
    array = to_device(np.arange(6.0).reshape(2, 3), device)
    asked = fetch(array, Tensor(array[:, 1]), array.sum())
    array += 1
    synchronize(device)
    found = asked.results()
    assert (found[0] == np.arange(6).reshape(2, 3)).all() and found[1].tolist() == [1, 4]
    assert found[2].shape == () and found[2] == 15


# ---- what it costs ------------------------------------------------------------------------------


def test_a_replay_allocates_nothing(gpu):
    import cupy

    training = Training(gpu, "on", clip=1.0, stochastic_depth=0.2).train(batches(CASE))
    images, labels = (to_device(a, gpu) for a in batches(CASE)[0])
    for _ in range(3):  # as it is, and recorded from where these lie
        training.run(images, labels)

    class Count(cupy.cuda.MemoryHook):
        name, calls = "count", 0

        def alloc_preprocess(self, **_):
            self.calls += 1

        malloc_preprocess = alloc_preprocess

    used = cupy.get_default_memory_pool().used_bytes()
    with Count() as count:
        for _ in range(3):
            training.run(images, labels)
    assert count.calls == 0 and cupy.get_default_memory_pool().used_bytes() == used


def test_its_memory_goes_with_it(gpu):
    sizes = {"image_size": 64, "patch_size": 8, "num_blocks": 4, "hidden_dim": 256,
             "tokens_mlp_dim": 128, "channels_mlp_dim": 1024, "num_classes": 7}  # fmt: skip
    data = [(np.zeros((256, 64, 64, 3), "uint8"), np.zeros(256, "int64"))] * 4
    for _ in range(2):
        training = Training(gpu, "auto", Case(CASE.config, 1, 1))
        training.model = Mixer(**sizes).to(gpu)
        training.optimizer = AdamW(training.model.parameters())
        training.run = record(training.step, training.model, training.optimizer)
        training.train(data)
        synchronize(gpu)
        gone, pools = weakref.ref(training.run), list(training.run._pools.values())
        assert training.run.recordings == 1 and pools[0].most > 100 << 20
        assert pools[0].most <= training.run.reserved_bytes <= 1.05 * pools[0].most
        del training
        gc.collect()  # the test's own step is a method of what holds it
        assert gone() is None and [pool.total_bytes() for pool in pools] == [0]


def test_inboxes_take_arrays_of_both_devices(gpu):
    inbox = Inbox((2, 3), np.dtype("float32"))
    for i in range(8):
        values = np.full((2, 3), i, dtype="float32")
        for array in (values, to_device(values, gpu), to_device(values.T.copy(), gpu).T):
            inbox.array.fill(-1)
            inbox.take(array)
            assert (to_numpy(inbox.array) == i).all()


# ---- what can go wrong --------------------------------------------------------------------------


def test_memory_that_runs_out(gpu, monkeypatch):
    """In a recording there is a warning, and it is tried again later; elsewhere recordings make
    room. What CuPy then gives back is nothing that a recording uses."""
    import cupy

    class Memory(cupy.cuda.Memory):
        full = "never"

        def __init__(self, size):
            capturing = cupy.cuda.get_current_stream().is_capturing()
            if Memory.full == "always" or (Memory.full == "while recording" and capturing):
                raise cupy.cuda.runtime.CUDARuntimeError(2)
            super().__init__(size)

    monkeypatch.setattr(cupy.cuda, "Memory", Memory)
    monkeypatch.setattr("minimixer.graph.recorded.PATIENCE", 3)
    model = CASE.model(gpu, "float32").eval()
    run = record(lambda x: model(x), model)
    images = np.random.default_rng(0).integers(0, 256, (4096, 16, 24, 3), dtype="uint8")

    def check(size: int) -> None:
        expected = model(images[:size]).numpy()
        assert abs(expected).max() > 0 and (run(images[:size]).numpy() == expected).all()

    for _ in range(3):
        check(6)
    assert run.recordings == 1
    (pool,) = run._pools.values()
    with pool.device:
        pool.pool.free_all_blocks()
        cupy.get_default_memory_pool().free_all_blocks()
        others = [cupy.full(n, np.nan, "float32") for n in (1 << 10, 1 << 18, 1 << 20) * 4]
    check(6)
    assert all(cupy.isnan(array).all() for array in others)
    Memory.full = "while recording"
    check(64)
    with pool.device:
        pool.pool.free_all_blocks()
    with pytest.warns(RuntimeWarning, match="there is not memory enough"):
        check(64)
    assert run.recordings == 0
    Memory.full = "never"
    for _ in range(5):
        check(64)
    assert run.recordings == 1
    Memory.full = "always"
    with pytest.raises(MemoryError):
        run(images)
    assert run.recordings == 0
    Memory.full = "never"
    for _ in range(3):
        check(4096)
    assert run.recordings == 1


def test_more_kinds_than_it_keeps(gpu, monkeypatch):
    monkeypatch.setattr("minimixer.graph.recorded.PATIENCE", 200)
    model = CASE.model(gpu, "float32").eval()
    calls = []
    run = record(lambda x: (calls.append(1), model(x))[1], model)
    images = np.zeros((64, 16, 24, 3), "uint8")
    with pytest.warns(RuntimeWarning, match="change from step to step"):
        for size in range(1, 21):
            run(images[:size])
    with pytest.warns(RuntimeWarning, match="more than 16 kinds") as said:
        for size in range(1, 21):
            assert (run(images[:size]).numpy() == model(images[:size]).numpy()).all()
    assert len(said) == 1 and run.recordings == MOST_RECORDINGS
    calls.clear()
    for _ in range(20):
        for size in range(1, 21):
            run(images[:size])
    assert len(calls) == 20 * 4  # the others are replayed
    for _ in range(220):  # until the first ones are forgotten
        run(images[:20])
    run(images[:20])
    calls.clear()
    for _ in range(3):
        run(images[:20])
    assert not calls and run.recordings == MOST_RECORDINGS
    agree(run, model, [images[:size] for size in range(1, 60)])
    assert len(run._inboxes) <= 2 * MOST_RECORDINGS + 1


def test_a_failed_recording_of_training_leaves_nothing(gpu):
    data = batches(CASE)
    plain, recorded = Training(gpu, "off"), Training(gpu, "auto")
    fail = [True]
    step = recorded.step

    def sometimes(images, labels):
        loss = F.cross_entropy(recorded.model(images), labels)
        loss.backward()
        if fail[0]:
            loss.item()
        recorded.optimizer.zero_grad()
        return step(images, labels)

    first = record(sometimes, recorded.model, recorded.optimizer)
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        for batch in data[:3]:
            first(*batch)
    fail[0] = False
    second = record(step, recorded.model, recorded.optimizer)
    for batch in data[3:]:
        second(*batch)
    for batch in data:
        plain.run(*batch)
    assert plain.state() == recorded.state()
    assert second.recordings == 2


def test_what_is_refused(device):
    model = CASE.model(device, "float32")
    with pytest.raises(ValueError, match="'auto', 'on' or 'off', got 'maybe'"):
        record(model, model, graph="maybe")
    run = record(lambda x: model(x), model)
    with pytest.raises(TypeError, match=r"input 1 is 3: give settings by name"):
        run(batches(CASE)[0][0], 3)
    if device == "cpu":
        with pytest.raises(ValueError, match="the model is on the CPU"):
            record(model, model, graph="on")(batches(CASE)[0][0])


def waits(model, images):
    return Tensor([model(images).sum().item()])


def copies(model, images):
    return model(images) + Tensor(np.ones(7, "float32"), device=model.device)


def sets_the_rate(model, images):
    AdamW(model.parameters()).lr_factor = 0.5
    return model(images)


@pytest.mark.parametrize("function", [waits, copies, sets_the_rate])
def test_what_cannot_be_recorded_runs_as_it_is(gpu, function):
    model = CASE.model(gpu, "float32").eval()
    run = record(lambda images: function(model, images), model)
    images = batches(CASE)[0][0]
    expected = function(model, to_device(images, gpu)).numpy()
    assert (run(images).numpy() == expected).all()
    with pytest.warns(RuntimeWarning, match=r"test_graph\.py:\d+ could not be recorded") as said:
        assert (run(images).numpy() == expected).all()
    assert len(said) == 1
    for images, _ in batches(CASE) * 2:  # a second warning would be an error
        assert np.allclose(run(images).numpy(), function(model, to_device(images, gpu)).numpy())
    assert run.recordings == 0
    good = record(lambda x: model(x), model)
    agree(good, model, [images] * 3)
    assert good.recordings == 1


def test_an_error_of_the_function_is_its_own(device):
    training, calls = Training(device, "auto"), []

    def step(images, labels):
        calls.append(1)
        if len(calls) > 3:
            raise KeyError("mine")
        return training.step(images, labels)

    run = record(step, training.model, training.optimizer)
    data = batches(CASE)
    run(*data[0])
    run(*data[3])  # of another shape
    state = training.state()
    calls.extend([1, 1])
    warnings.simplefilter("ignore")
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            run(*data[0])
    assert training.state() == state
    assert all(p.grad is None for p in training.model.parameters())


def test_shapes_that_always_change(gpu):
    model = CASE.model(gpu, "float32").eval()
    run = record(lambda x: model(x), model)
    images = np.zeros((64, 16, 24, 3), "uint8")
    with pytest.warns(RuntimeWarning, match="change from step to step") as said:
        for size in range(1, 30):
            assert run(images[:size]).shape == (size, 7)
    assert len(said) == 1 and run.recordings == 0
    agree(run, model, [images[:size] for size in range(1, MOST_RECORDINGS)])
    assert run.recordings == MOST_RECORDINGS - 1
    assert MOST_CHANGES < 29
