"""What the report says of a model, against a real one: counted, measured, and read as text."""

import contextlib
import math
import re
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from help import by_kernels_and_plainly, functions
from hypothesis import given
from hypothesis import strategies as st
from strategies import dtypes, each_half
from test_oracles import SMALL, Case, cases, examples

from minimixer import Function, Mixer, Tensor, backend, no_grad
from minimixer import functional as F
from minimixer.backend import Array, is_array, namespace
from minimixer.kernels import fused
from minimixer.kernels.gpu import channel_mixing, hopper
from minimixer.model.variants import VARIANTS
from minimixer.training.summary import Summary
from support.kernels import using


def layer_names(model: Mixer) -> list[str]:
    """Every layer with Parameters of its own, in order: the rows that a table should have."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def by_layer(table: Summary, figure: str) -> dict[str, Any]:
    return {row.name: getattr(row, figure) for row in table.rows}


def input_for(case: Case, model: Mixer) -> Tensor:
    return Tensor(case.images(), dtype=model.dtype, device=model.device)


# ---- parameters ----------------------------------------------------------------------------------


def test_parameters_are_those_of_a_real_model(device):
    @examples(device, cpu=25)
    @given(cases())
    def check(case):
        model = Mixer(**case.config).to(device)
        table = model.summary()
        expected = dict.fromkeys(layer_names(model), 0)
        for name, parameter in model.named_parameters():
            expected[name.rpartition(".")[0]] += parameter.size
        assert by_layer(table, "parameters") == expected
        assert [row.name for row in table.rows] == list(expected)
        assert table.parameters == model.num_parameters()

    check()


# ---- output shapes -------------------------------------------------------------------------------


def test_output_shapes_are_those_of_a_real_model(device, monkeypatch):
    """Every call with a layer's Parameters, and what came out of it."""
    model = outputs = None

    def record(right):
        def recorded(x, weight, *rest, **options):
            result = right(x, weight, *rest, **options)
            for path, parameter in model.named_parameters():
                if weight is parameter:
                    outputs[path.rpartition(".")[0]] = result.shape
            return result

        return recorded

    for name in ("linear", "linear_first", "layer_norm"):
        monkeypatch.setattr(F, name, record(getattr(F, name)))

    @examples(device, cpu=25)
    @given(cases())
    def check(case):
        nonlocal model, outputs
        model, outputs = Mixer(**case.config).to(device), {}
        model(case.images())
        table = model.summary(batch_size=case.batch)
        assert by_layer(table, "output_shape") == outputs
        assert list(outputs) == [row.name for row in table.rows]  # and in the order of the rows

    check()


# ---- multiplications -----------------------------------------------------------------------------


def address(array: Array) -> int:
    return array.ctypes.data if namespace(array) is np else array.data.ptr


@pytest.fixture
def products(monkeypatch) -> list[tuple[Array, Array]]:
    """The factors of every matrix product that runs, wherever the package calls it."""
    found: list[tuple[Array, Array]] = []
    right = backend.matmul

    def recorded(a, b, *rest, **options):
        found.append((a, b))
        return right(a, b, *rest, **options)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "minimixer":
            for attribute, value in list(vars(module).items()):
                if value is right:
                    monkeypatch.setattr(module, attribute, recorded)
    return found


def macs(a: Array, b: Array) -> int:
    (m, k), (_, n) = a.shape[-2:], b.shape[-2:]
    return math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2])) * m * k * n


def test_multiplications_are_those_that_a_real_model_does(device, products, reference):
    @examples(device, cpu=25)
    @given(cases(), dtypes, st.booleans())
    def check(case, dtype, for_backward):
        model = Mixer(**case.config, dtype=dtype).to(device)
        x = input_for(case, model)
        products.clear()
        with contextlib.nullcontext() if for_backward else no_grad():
            model(x)
        owners = {
            address(p.data): name.rpartition(".")[0]
            for name, p in model.named_parameters()
            if p.ndim == 2
        }
        counted = {row.name: 0 for row in model.summary().rows}
        for a, b in products:
            (layer,) = {owners[address(f)] for f in (a, b) if address(f) in owners}
            counted[layer] += macs(a, b)
        table = model.summary(batch_size=case.batch)
        assert counted == by_layer(table, "macs")
        assert sum(counted.values()) == table.macs > 0
        norms = [name for name in counted if "norm" in name]
        assert norms and not any(counted[name] for name in norms)

    check()


# ---- memory --------------------------------------------------------------------------------------


def arrays_in(value: Any) -> list[Array]:
    if is_array(value):
        return [value]
    if isinstance(value, Tensor):
        return [value.data]
    if isinstance(value, Function):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [array for item in value for array in arrays_in(item)]
    return []


def owner_of_memory(array: Array) -> Array:
    """The array that a view is a view of: what is kept alive is all of that."""
    while is_array(array.base):
        array = array.base
    return array


def kept_by_the_graph(logits: Tensor, model: Mixer) -> dict[str, int]:
    """Bytes of the arrays in the nodes behind `logits`, each memory once, by layer.

    A node belongs to the layer whose matrix, or whose gamma, it read, input 3 of AddLayerNorm and
    input 1 of the others; GELU to the layer before it; what remains is listed under its class.
    """
    names = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    own = [model.buffer.values, *([] if model.buffer.low is None else [model.buffer.low])]
    counted = {id(owner_of_memory(array)) for array in own}  # the Parameters' memory
    alive = []  # so that no id is used again
    kept: dict[str, int] = {}
    stack, seen = [logits.node], {logits.node}
    while stack:
        node = stack.pop()
        kind = type(node).__name__.removeprefix("Fast")
        position = {"Linear": 1, "LinearFirst": 1, "MLP": 1, "LayerNorm": 1, "AddLayerNorm": 3,
                    "GELU": 1}.get(kind)  # fmt: skip
        reader = node.parents[0][0] if kind == "GELU" else node
        layer = kind if position is None else names[id(reader.parents[position][0])]
        for array in arrays_in(vars(node)):
            owner = owner_of_memory(array)
            if id(owner) not in counted:
                counted.add(id(owner))
                alive.append(owner)
                kept[layer] = kept.get(layer, 0) + owner.nbytes
        for parent in node.parents:
            if parent is not None and not isinstance(parent[0], Tensor) and parent[0] not in seen:
                seen.add(parent[0])
                stack.append(parent[0])
    return kept


@by_kernels_and_plainly
def test_activation_bytes_are_those_that_the_graph_keeps(device, kind):
    @examples(device, cpu=25)
    @given(cases(), dtypes)
    def check(case, dtype):
        model = Mixer(**case.config, dtype=dtype).to(device)
        logits = model(input_for(case, model))
        table = model.summary(batch_size=case.batch)
        assert kept_by_the_graph(logits, model) == by_layer(table, "activation_bytes")
        assert table.activation_bytes == sum(by_layer(table, "activation_bytes").values()) > 0
        assert table.itemsize == np.dtype(dtype).itemsize

    with functions(kind):
        check()


def test_activation_bytes_of_a_model_larger_than_a_block(device):
    """Where LayerNorm keeps its input and two numbers for each row."""
    config = {"image_size": 16, "patch_size": 4, "num_blocks": 1, "hidden_dim": 128,
              "tokens_mlp_dim": 8, "channels_mlp_dim": 8, "in_channels": 1,
              "num_classes": 3}  # fmt: skip
    model, batch = Mixer(**config).to(device), 64
    images = np.zeros((batch, 16, 16, 1), "uint8")
    logits = model(images)
    kept = by_layer(model.summary(batch_size=batch), "activation_bytes")
    assert kept_by_the_graph(logits, model) == kept
    if backend.form_of(fused.AddLayerNorm, model.stem.weight.data) is not None:
        assert kept["blocks.0.norm1"] == 16 * batch * (128 + 2) * 4


@each_half
def test_activation_bytes_of_two_byte_models(device, dtype, reference):
    case = Case(SMALL, batch=3, seed=1)
    model = Mixer(**case.config, precision=dtype).to(device)
    model(case.images())  # makes the copy of the weights
    kept = kept_by_the_graph(model(case.images()), model)
    expected = by_layer(model.summary(batch_size=3), "activation_bytes")
    others = {name: size for name, size in kept.items() if name not in expected}
    assert {name: kept[name] for name in expected} == expected and sum(others.values()) < 100


@pytest.mark.parametrize("which", ["auto", "lean"])
def test_activation_bytes_where_hopper_s_tensor_cores_do_it(gpu, which, monkeypatch):
    """Channel mixing keeps GELU's slope beside what came out, or what goes in alone."""
    monkeypatch.setattr(channel_mixing, "SMALLEST", 0)
    config = SMALL | {"image_size": 16, "patch_size": 4, "in_channels": 1, "hidden_dim": 96,
                      "tokens_mlp_dim": 64, "channels_mlp_dim": 192}  # fmt: skip
    model = Mixer(**config, precision="bfloat16").to(gpu)
    if model.stem.weight.data.device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    images = np.zeros((8, 16, 16, 1), "uint8")
    with using(which):
        model(images)  # makes the copy of the weights
        kept = kept_by_the_graph(model(images), model)
        expected = by_layer(model.summary(batch_size=8), "activation_bytes")
    assert {name: kept[name] for name in expected} == expected
    columns, weights = 16 * 8, 128 * 192  # of 96 channels, in whole 64s
    assert kept["blocks.0.channel_mixing"] == 2 * (
        columns * (96 + (2 if which == "auto" else 1) * 192) + weights
    )


def used_memory(device: str) -> int:
    if device == "cpu":
        return tracemalloc.get_traced_memory()[0]
    backend.synchronize(device)
    return sys.modules["cupy"].get_default_memory_pool().used_bytes()


def test_activation_bytes_are_what_a_forward_takes_from_the_machine(device, reference):
    config = SMALL | {"image_size": 32, "hidden_dim": 64, "channels_mlp_dim": 96}
    model = Mixer(**config).to(device)
    x = Tensor(np.ones((32, 32, 32, 3), dtype=np.float32), device=device)
    model(x)  # so that whatever is made once is there
    tracemalloc.start()
    try:
        before = used_memory(device)
        logits = model(x)
        taken = used_memory(device) - before
        del logits
        left = used_memory(device) - before
    finally:
        tracemalloc.stop()
    said = model.summary(batch_size=32).activation_bytes
    assert said > 5_000_000
    assert said <= taken < 1.02 * said  # the rest: logits, Python's objects
    assert left < 0.001 * said


# ---- the table -----------------------------------------------------------------------------------


def test_a_model_says_the_same_as_its_name():
    for changes in ({}, {"num_classes": 10}, {"image_size": (64, 96), "approximate": "none"}):
        small = {"hidden_dim": 8, "tokens_mlp_dim": 3, "channels_mlp_dim": 5, **changes}
        model = Mixer.from_name("mixer_s32", **small)
        for batch in (1, 3):
            a, b = model.summary(batch), Mixer.summary_of("mixer_s32", batch, **small)
            assert a.rows == b.rows and str(a) == str(b)
            assert (a.batch_size, a.itemsize) == (b.batch_size, b.itemsize) == (batch, 4)


def test_figures_grow_with_the_batch_but_for_the_parameters():
    one, many = (Mixer.summary_of("mixer_b16", batch) for batch in (1, 7))
    assert many.parameters == one.parameters
    assert (many.macs, many.activation_bytes) == (7 * one.macs, 7 * one.activation_bytes)
    for a, b in zip(one.rows, many.rows, strict=True):
        batch_axis = 0 if a.name == "head" else 1
        assert a.output_shape[batch_axis] == 1 and b.output_shape[batch_axis] == 7


@pytest.mark.parametrize("table", [*VARIANTS, "small"])
def test_the_text_has_aligned_columns(table):
    if table == "small":
        table = Mixer(**SMALL, dtype="float64").summary(batch_size=12345)
    else:
        table = Mixer.summary_of(table, batch_size=4)
    text = str(table)
    assert text == repr(table) and not text.endswith("\n")
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == lines[-2] == "-" * len(lines[0])
    lines = [line for line in lines if not line.startswith("--")]
    cells = [list(re.finditer(r"\S+(?: \S+)*", line)) for line in lines]
    assert {len(row) for row in cells} == {5}
    for column in range(5):
        edges = {row[column].start() if column < 2 else row[column].end() for row in cells}
        assert len(edges) == 1, f"column {column}"
    words = [[cell[0] for cell in row] for row in cells]
    assert words[0] == ["layer", "output shape", "parameters", "MACs", "activation bytes"]
    for row, found in zip(table.rows, words[1:-1], strict=True):
        assert found[:2] == [row.name, str(row.output_shape)]
        assert [int(n.replace(",", "")) for n in found[2:]] == list(row[2:])
    totals = [table.parameters, table.macs, table.activation_bytes]
    assert words[-1] == ["total", f"batch of {table.batch_size}", *(f"{n:,}" for n in totals)]


def test_the_largest_variant_is_summed_up_without_making_it():
    Mixer.summary_of("mixer_s32")  # imported by now
    tracemalloc.start()
    try:
        start = time.perf_counter()
        table = Mixer.summary_of("mixer_h14", batch_size=4096)
        text = str(table)
        took = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.parameters == 432_350_952 and "432,350,952" in text
    assert took < 1 and peak < 5_000_000
