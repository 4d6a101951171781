"""Where benchmark.py's time goes: a step's products timed alone, and a profile by operation."""

import contextlib
import importlib
import sys
import time
from collections import Counter
from pkgutil import iter_modules

import numpy as np


def record_products(step, device: str) -> Counter:
    """How often the step multiplies which kinds of matrices; on the CPU as the plain code does,
    and not with vectors."""
    from minimixer.engine import products
    from support.kernels import using

    seen: Counter = Counter()

    def note(a, b, out_dtype, precision, done=True):
        stored = [x.strides[-1] == x.itemsize or x.shape[-1] == 1 for x in (a, b)]
        seen[a.shape, b.shape, *stored, a.dtype, out_dtype, precision] += bool(done)

    def noted(a, b, out=None, accumulate=False, precision=None, bias=None):
        if a.ndim == b.ndim == 2 and 1 not in a.shape and 1 not in b.shape:
            note(a, b, a.dtype if out is None else out.dtype, precision)
        return plain(a, b, out, accumulate, precision, bias)

    def noted_on_gpu(a, b, out, accumulate, precision, *epilogue):
        done = plain(a, b, out, accumulate, precision, *epilogue)
        note(a, b, out.dtype, precision, done)  # else there is no such epilogue
        return done

    plain, as_before = products.matmul, contextlib.ExitStack()
    if device != "cpu":  # where all of these, and those with an epilogue, end
        from minimixer.kernels.gpu import cublas, hopper, small

        plain, noted = cublas._product, noted_on_gpu
        for kernels in (hopper, small):  # which multiply themselves: it would not see that
            as_before.callback(setattr, kernels, "suits", kernels.suits)
            kernels.suits = lambda *_: False
    places = places_of(plain)
    for module, name in places:
        as_before.callback(setattr, module, name, plain)
    with as_before:
        for module, name in places:
            setattr(module, name, noted)
        with using("reference") if device == "cpu" else contextlib.nullcontext():
            step()
    return seen


def places_of(function) -> list:
    """Where the package calls a function: modules, and its names there."""
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == "minimixer"]
    return [(m, name) for m in modules for name, value in vars(m).items() if value is function]


def time_products(step, device: str) -> float:
    """Milliseconds of the step's matrix products, each timed alone, ten in a row; on the CPU by
    BLAS's threads or ours, whichever are faster with it."""
    from minimixer import backend
    from minimixer.engine import products
    from support.kernels import using

    total = 0.0
    for kind, count in record_products(step, device).items():
        shape_a, shape_b, right_a, right_b, dtype, out_dtype, precision = kind
        a, b = (
            random_matrix(shape_a, right_a, dtype, device),
            random_matrix(shape_b, right_b, dtype, device),
        )
        out = backend.namespace(a).empty((shape_a[0], shape_b[1]), dtype=out_dtype)
        ways = []
        for which in ("reference", "auto") if device == "cpu" else ("auto",):
            with using(which):
                ways.append(
                    time_one(lambda: products.matmul(a, b, out, False, precision), device)  # noqa: B023
                )
        total += count * min(ways)
    return 1e3 * total


def random_matrix(shape, right: bool, dtype, device: str):
    from minimixer import backend

    shape = shape if right else shape[::-1]
    values = np.random.default_rng(0).standard_normal(min(np.prod(shape), 1 << 22), dtype="float32")
    matrix = backend.to_device(np.resize(values, shape), device).astype(dtype)
    return matrix if right else matrix.T


def time_one(function, device: str, count: int = 10) -> float:
    """Seconds of one call: the smallest of three means over `count` calls."""
    from minimixer import backend

    if device != "cpu":
        return time_on_gpu(function, count)
    means = []
    for _ in range(4):  # the first warms up
        backend.synchronize(device)
        start_time = time.perf_counter()
        for _ in range(count):
            function()
        backend.synchronize(device)
        means.append((time.perf_counter() - start_time) / count)
    return min(means[1:])


def time_on_gpu(function, count: int) -> float:
    """The same, recorded: Python can't start small kernels as fast as they end."""
    import cupy

    function()  # chooses and compiles what has to be
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        for _ in range(count):
            function()
        graph = stream.end_capture()
        times = []
        for _ in range(4):  # the first warms up
            start_event, end_event = cupy.cuda.Event(), cupy.cuda.Event()
            start_event.record(stream)
            graph.launch(stream)
            end_event.record(stream)
            end_event.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start_event, end_event) / 1e3 / count)
    return min(times[1:])


def large_product(model, device: str) -> float:
    """TFLOP/s of a square product, 8192 on a GPU, in the model's precision."""
    from minimixer.engine import products

    n = 1024 if device == "cpu" else 8192
    a = random_matrix((n, n), True, model.activation_dtype, device)
    seconds = time_one(lambda: products.matmul(a, a, precision=model.buffer.precision), device)
    return 2e-12 * n**3 / seconds


def profile(step, device: str) -> list[str]:
    """One line for each kind of operation: calls, time, bytes or FLOPs a second. On a GPU an
    operation is one of our kernels or a product (CuPy's own, for a few small arrays, are left
    out); on the CPU a Function's forward or backward, whole, but for the products that it put
    aside: they are counted there, and done while later ones are timed."""
    rows = profile_gpu(step) if device != "cpu" else profile_cpu(step)
    whole = sum(ms for _, ms, _, _ in rows.values())
    lines = [f"{'operation':64} calls       ms share    GB/s TFLOP/s"]
    for name, (calls, ms, size, flops) in sorted(rows.items(), key=lambda row: -row[1][1]):
        rates = f"{size / ms / 1e6:7.0f} {flops / ms / 1e9:7.1f}" if ms else ""
        lines.append(f"{name:64.64} {calls:5} {ms:8.3f} {ms / whole:5.1%} {rates}")
    return lines


def profile_cpu(step) -> dict:
    from minimixer.engine import autograd, forms
    from minimixer.engine.aside import join

    rows: dict = {}
    choose, unchanged = autograd.choose, forms.unchanged
    as_it_was = {plain: unchanged(plain) for plain in forms.table}  # before it is watched

    def timed(label, flops, function, *arrays, **options):
        start_time = time.perf_counter()
        result = function(*arrays, **options)
        ms = 1e3 * (time.perf_counter() - start_time)
        results = result if isinstance(result, (tuple, list)) else [result]
        size = sum(getattr(a, "nbytes", 0) for a in [*arrays, *results] if a is not None)
        calls, total, sizes, all_flops = rows.get(label, (0, 0.0, 0, 0))
        rows[label] = (calls + 1, total + ms, sizes + size, all_flops + flops)
        return result

    def chosen(node, *inputs):
        """The node that does the work, which is timed."""
        node = choose(node, *inputs)
        kind, forward, backward, flops = type(node), node.forward, node.backward, 0

        def timed_forward(*arrays, **options):
            nonlocal flops
            flops = flops_of(kind, arrays)
            return timed(f"{kind.__name__} forward", flops, forward, *arrays, **options)

        def timed_backward(*gradients):
            there = flops * (1 + node.needs[0])  # dW, and dx
            return timed(f"{kind.__name__} backward", there, backward, *gradients)

        node.forward, node.backward = timed_forward, timed_backward
        return node

    def joined():
        timed("what was put aside: the rest", 0, join)

    waits = places_of(join)
    forms.unchanged, autograd.choose = as_it_was.__getitem__, chosen
    for module, name in waits:
        setattr(module, name, joined)
    try:
        start_time = time.perf_counter()
        step()
        whole = 1e3 * (time.perf_counter() - start_time)
    finally:
        forms.unchanged, autograd.choose = unchanged, choose
        for module, name in waits:
            setattr(module, name, join)
    rest = whole - sum(row[1] for row in rows.values())
    return rows | {"all else: the optimizer, the engine": (1, rest, 0, 0)}


def flops_of(kind, arrays) -> int:
    """Two for each multiplication in forward's products."""
    from minimixer import functional, ops
    from minimixer.kernels import fused

    if issubclass(kind, fused.MLP):
        return 4 * arrays[0].size * arrays[1].shape[1]
    if issubclass(kind, functional.LinearFirst):
        return 2 * arrays[0].size * arrays[1].size // len(arrays[0])
    if issubclass(kind, (functional.Linear, ops.MatMul)):
        return 2 * arrays[0].size * arrays[1].shape[-1]
    return 0


def profile_gpu(step) -> dict:
    import cupy

    from minimixer.kernels import gpu
    from minimixer.kernels.gpu import cublas, cuda, hopper, plans

    notes = []
    mapped: dict = {}  # tensor maps, and their arrays' bytes, by the map's identity
    found = [
        importlib.import_module(f"{gpu.__name__}.{m.name}") for m in iter_modules(gpu.__path__)
    ]
    modules = [module for module in found if "get" in vars(module) and module is not cuda]
    get, product, tensor_map = cuda.get, cublas._product, hopper.tensor_map

    def measured(label, size, flops, function, *arguments, **options):
        start_event, end_event = cupy.cuda.Event(), cupy.cuda.Event()
        start_event.record()
        result = function(*arguments, **options)
        end_event.record()
        notes.append((label, start_event, end_event, size, flops))
        return result

    class Noted:
        """A kernel whose launches are measured."""

        def __init__(self, kernel, expression):
            vars(self).update(kernel=kernel, expression=expression)

        def __getattr__(self, name):
            return getattr(self.kernel, name)

        def __setattr__(self, name, value):
            setattr(self.kernel, name, value)

        def __call__(self, grid, block, arguments, **options):
            expression = self.expression
            maps = {id(x): mapped[id(x)][1] for x in arguments if id(x) in mapped}
            arrays = [x for x in arguments if isinstance(x, cupy.ndarray)]
            # What is written over was read before: dg, u where g is made again, w, m and v.
            again = []
            if "gelu" in expression and "backward" in expression:
                again = [arguments[2]] + [arguments[0]] * expression.endswith(",true>")
            elif expression.startswith("adamw"):
                again = [arguments[0], arguments[2], arguments[3]]
            size = sum(x.nbytes for x in [*arrays, *again]) + sum(maps.values())
            return measured(expression, size, 0, self.kernel, grid, block, arguments, **options)

    def noted_get(file, expression, more=""):
        return Noted(get(file, expression, more), expression)

    def noted_map(matrix, rows, columns):
        made = tensor_map(matrix, rows, columns)
        mapped[id(made)] = made, matrix.nbytes
        return made

    def noted_product(a, b, out, *rest):
        (m, k), n = a.shape, b.shape[1]
        size = a.nbytes + b.nbytes + out.nbytes
        label = f"product ({m}, {k}) @ ({k}, {n}) {a.dtype} -> {out.dtype}"  # or nothing
        if rest[2] & (plans.WITH_GELU | plans.WITH_SLOPE):
            label += " gelu" if rest[2] & plans.WITH_GELU else " slope"
            size += out.nbytes if rest[2] & plans.WITH_AUX else 0
        return measured(label, size, 2 * m * k * n, product, a, b, out, *rest)

    # A tenth of a second of work queued first, so that launches never wait for Python.
    idle = cupy.zeros(1 << 28, dtype="float32")
    try:
        cublas._product, hopper.tensor_map = noted_product, noted_map
        for module in modules:
            module.get = noted_get
        for _ in range(200):
            idle += 1
        step()
    finally:
        cublas._product, hopper.tensor_map = product, tensor_map
        for module in modules:
            module.get = get
    rows: dict = {}
    for label, start_event, end_event, size, flops in notes:
        ms = cupy.cuda.get_elapsed_time(start_event, end_event)
        calls, total, sizes, all_flops = rows.get(label, (0, 0.0, 0, 0))
        rows[label] = (calls + 1, total + ms, sizes + size, all_flops + flops)
    return rows
