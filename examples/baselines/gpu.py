"""Attention, convolution and their norms again, on CUDA kernels: the .cu files beside this one.

They stand in for layers.py's and operations.py's on a GPU while those files are what they were
compared with, and not under kernels.use("reference"). Other softmaxes and products of many matrices
have fast forms in the package.
"""

from pathlib import Path
from typing import Any

import numpy as np

from baselines import layers
from baselines.operations import Conv2d, GroupNorm, WeightStandardize, Windows
from minimixer import Function, Tensor, kernels
from minimixer.backend import Array, namespace
from minimixer.kernels.gpu import cublas
from minimixer.kernels.gpu.cuda import (
    allow_shared,
    as_bool,
    ceil_div,
    get,
    most_shared,
    pack,
    type_of,
    usable,
)
from minimixer.kernels.gpu.sums import can_sum, sum_rows
from minimixer.kernels.node import Fast

# The digests of what they were compared with.
COMPARED = {
    "baselines.layers": "656f6db85b58f187c8ebf2deee9d6e9f",
    "baselines.operations": "cedacca8f523683f073a9324e9fc77ef",
}
HERE = Path(__file__).parent
ATTENTION, NORMS, WINDOWS = (str(HERE / f"{name}.cu") for name in ("attention", "norms", "windows"))
THREADS = 512
FLOATS = np.float32, np.float64  # shorter numbers come as float32, once a form was chosen

# ---- attention ----------------------------------------------------------------------------------


class FastAttention:
    """layers.attention, of up to 128 tokens and 128 channels a head."""

    @staticmethod
    def suits(qkv: Any, heads: int) -> bool:
        x = qkv.data if isinstance(qkv, Tensor) else qkv
        if namespace(x) is np or x.ndim != 3 or not x.size or x.shape[2] % (3 * heads):
            return False
        if x.dtype not in FLOATS:
            return False
        tokens, width = x.shape[0], x.shape[2] // (3 * heads)
        if max(tokens, width) > 128 or x.shape[1] > 65535:
            return False
        if shared_bytes(tokens, width, 2, x.itemsize) > most_shared(x.device.id):
            return False
        return usable(ATTENTION, *(kernel_name(name, x, heads) for name in _BOTH))

    @staticmethod
    def run(qkv: Any, heads: int) -> Tensor:
        return OneAttention.apply(qkv, heads=heads)


_BOTH = "attention", "attention_backward"


class OneAttention(Function):
    """All of it in one kernel, and backward in another, that makes the weights again: kept are qkv
    and a number for each row of them."""

    takes_numbers = False

    def forward(self, qkv, heads):
        tokens, batch, channels = len(qkv), qkv.shape[1], qkv.shape[2] // 3
        xp, self.heads, qkv = namespace(qkv), heads, namespace(qkv).ascontiguousarray(qkv)
        y = xp.empty((tokens, batch, channels), dtype=qkv.dtype)
        log_sums = xp.empty((batch, heads, tokens), dtype=qkv.dtype)
        self.start("attention", 1, qkv, (qkv,), y, log_sums)
        self.kept = (qkv, log_sums) if self.needs[0] else None
        return y

    def backward(self, dy):
        qkv, log_sums = self.kept
        dqkv = namespace(dy).empty_like(qkv)
        dy = namespace(dy).ascontiguousarray(dy)
        self.start("attention_backward", 2, qkv, (dy, qkv, log_sums), dqkv)
        return dqkv

    def start(self, name: str, matrices: int, qkv: Array, inputs: Any, *outputs: Array) -> None:
        batch, width = qkv.shape[1], qkv.shape[2] // (3 * self.heads)
        kernel, room = kernel_for(name, qkv, self.heads, matrices)
        arguments = (*inputs, width**-0.5, *outputs)
        kernel((self.heads, batch), (256,), arguments, shared_mem=room)


def kernel_name(name: str, qkv: Array, heads: int) -> str:
    return f"{name}<{type_of(qkv)},{len(qkv)},{qkv.shape[2] // (3 * heads)}>"


def kernel_for(name: str, qkv: Array, heads: int, matrices: int) -> tuple[Any, int]:
    """The kernel, allowed as much shared memory as it needs; and how much that is."""
    kernel = get(ATTENTION, kernel_name(name, qkv, heads))
    width = qkv.shape[2] // (3 * heads)
    room = shared_bytes(len(qkv), width, matrices, qkv.itemsize)
    allow_shared(kernel, room)
    return kernel, room


def shared_bytes(tokens: int, width: int, matrices: int, itemsize: int) -> int:
    """Two of (tokens, width), and `matrices` of (tokens, tokens)."""
    return tokens * (2 * (width | 1) + matrices * (tokens | 1)) * itemsize


# ---- norms --------------------------------------------------------------------------------------


class FastGroupNorm(Fast, GroupNorm):
    """A block for each image; ReLU's slope is worked out again, so y need not be kept."""

    def suits(self, x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, relu: bool):
        options = self.options(x, relu)
        names = f"group_norm<{options}>", f"group_norm_backward<{options}>"
        few = x.shape[3] // self.width <= THREADS
        return few and x.dtype in FLOATS and usable(NORMS, *names) and can_sum(x.dtype)

    def options(self, x: Array, relu: bool) -> str:
        self.width = pack(x.shape[3], x.dtype)  # new arrays begin at multiples of 16 bytes
        return f"{type_of(x)},{self.width},{as_bool(relu)}"

    def forward(self, x, gamma, beta, groups, epsilon, relu):
        xp = namespace(x)
        x, gamma, beta = (aligned(a) for a in (x, gamma, beta))
        self.relu, self.groups = relu, groups
        y = xp.empty_like(x)
        mean, inverse_sigma = (xp.empty((len(x), groups), dtype=x.dtype) for _ in range(2))
        self.start("group_norm", x, x, gamma, beta, float(epsilon), (y, mean, inverse_sigma))
        self.kept = (x, mean, inverse_sigma, gamma, beta) if any(self.needs) else None
        return y

    def backward(self, dy):
        x, *others = self.kept
        xp, channels = namespace(x), x.shape[3]
        dx, partial = xp.empty_like(x), xp.empty((len(x), 2, channels), dtype=x.dtype)
        self.start("group_norm_backward", x, aligned(dy), x, *others, (dx, partial))
        dgamma, dbeta = (
            xp.empty(channels, dtype=x.dtype) if needed else None for needed in self.needs[1:]
        )
        sum_rows(partial, dgamma, dbeta)
        return dx if self.needs[0] else None, dgamma, dbeta

    def start(self, name: str, x: Array, *arguments: Any) -> None:
        """The kernel, with the sizes before its outputs."""
        *inputs, outputs = arguments
        batch, height, width, channels = x.shape
        kernel = get(NORMS, f"{name}<{self.options(x, self.relu)}>")
        across = channels // self.width
        threads = across * max(1, THREADS // across)
        numbers = 2 * channels + max(2 * threads * self.width, 2 * self.groups)
        sizes = np.int32(height * width), np.int32(channels), np.int32(self.groups)
        kernel((batch,), (threads,), (*inputs, *sizes, *outputs), shared_mem=numbers * x.itemsize)


class FastWeightStandardize(Fast, WeightStandardize):
    """In one kernel, and one back."""

    def suits(self, weight: Array, epsilon: float) -> bool:
        if weight.dtype not in FLOATS or weight.size >= 1 << 31:
            return False
        names = "standardize", "standardize_backward"
        return usable(NORMS, *(f"{name}<{type_of(weight)}>" for name in names))

    def forward(self, weight, epsilon):
        xp = namespace(weight)
        weight = xp.ascontiguousarray(weight)
        self.inverse_sigma = xp.empty(weight.shape[1], dtype=weight.dtype)
        y = xp.empty_like(weight)
        self.by_columns("standardize", weight, float(epsilon), y, self.inverse_sigma)
        self.y = y if self.needs[0] else None
        return y

    def backward(self, dy):
        dy = namespace(dy).ascontiguousarray(dy)
        dweight = namespace(dy).empty_like(dy)
        inputs = self.y, self.inverse_sigma
        self.by_columns("standardize_backward", dy, *inputs, dweight, sizes_at=3)
        return dweight

    def by_columns(self, name: str, *arguments: Any, sizes_at: int = 1) -> None:
        length, columns = arguments[0].shape
        sizes = np.int32(length), np.int32(columns)
        arguments = *arguments[:sizes_at], *sizes, *arguments[sizes_at:]
        kernel = get(NORMS, f"{name}<{type_of(arguments[0])}>")
        kernel((ceil_div(columns, 32),), (32, 32), arguments)


# ---- convolution --------------------------------------------------------------------------------


class FastConv2d(Fast, Conv2d):
    """Patches are cut without a padded copy, and gathered without one."""

    def suits(self, x: Array, weight: Array, **sizes: Any) -> bool:
        names = f"cut<{self.options(x)}>", f"uncut<{self.options(x)}>"
        return x.size > 0 and x.dtype in FLOATS and usable(WINDOWS, *names)

    def forward(self, x, weight, kernel, stride, padding, precision):
        self.windows, self.shape = Windows.over(x, kernel, stride, padding), x.shape
        self.precision, x = precision, aligned(x)
        self.x = x if self.needs[1] else None
        self.weight = weight if self.needs[0] else None
        shape = len(x), self.windows.rows, self.windows.columns, weight.shape[1]
        y = namespace(x).empty(shape, dtype=x.dtype)
        for part in self.parts(x):
            rows, out = self.cut(x[part]), y[part].reshape(-1, weight.shape[1])
            cublas.matmul(rows, weight, out=out, precision=precision)
        return y

    def backward(self, dy):
        xp, out = namespace(dy), dy.shape[3]
        dy = xp.ascontiguousarray(dy)
        dx = xp.empty(self.shape, dtype=dy.dtype) if self.needs[0] else None
        length = self.windows.kernel**2 * self.shape[3]
        dweight = xp.empty((length, out), dtype=dy.dtype) if self.needs[1] else None
        for part in self.parts(dy):
            d = dy[part].reshape(-1, out)
            if self.needs[1]:
                columns = self.cut(self.x[part]).T
                more = part.start > 0
                cublas.matmul(columns, d, dweight, accumulate=more, precision=self.precision)
            if self.needs[0]:
                whole = self.windows.kernel == self.windows.stride == 1
                rows = dx[part].reshape(-1, length) if whole else None
                rows = cublas.matmul(d, self.weight.T, rows, precision=self.precision)
                if not whole:
                    self.start("uncut", dx[part], rows, dx[part])
        return dx, dweight

    def options(self, x: Array) -> str:
        self.width = pack(x.shape[3], x.dtype)
        return f"{type_of(x)},{self.width}"

    def cut(self, x: Array) -> Array:
        """The patches of some images as a matrix; of a 1 x 1 kernel with stride 1 a view."""
        kernel, stride = self.windows.kernel, self.windows.stride
        if kernel == stride == 1:
            return x.reshape(-1, x.shape[3])
        count = len(x) * self.windows.rows * self.windows.columns
        rows = namespace(x).empty((count, kernel * kernel * x.shape[3]), dtype=x.dtype)
        self.start("cut", x, x, rows)
        return rows

    def start(self, name: str, image: Array, given: Array, made: Array) -> None:
        windows, (_, height, width, channels) = self.windows, image.shape
        sizes = (height, width, channels, windows.rows, windows.columns, windows.kernel,
                 windows.stride, windows.pads[0][0], windows.pads[1][0])  # fmt: skip
        packs = made.size // self.width
        get(WINDOWS, f"{name}<{self.options(image)}>")(
            (ceil_div(packs, 256),), (256,), (given, *map(np.int32, sizes), packs, made)
        )


def aligned(x: Array) -> Array:
    """Its elements in a row, from a multiple of 16 bytes on."""
    x = namespace(x).ascontiguousarray(x)
    return x.copy() if x.data.ptr % 16 else x


def stand_in() -> None:
    """On the arrays of CuPy, where there is any."""
    parts = "nn.more_loss", "nn.loss", "engine.ops", "engine.products", "engine.rearrange"
    kernels.register(layers.attention, COMPARED, *parts, cupy=FastAttention)
    own = {"baselines.operations": COMPARED["baselines.operations"]}
    for plain, form in (
        (GroupNorm, FastGroupNorm), (WeightStandardize, FastWeightStandardize),
        (Conv2d, FastConv2d),
    ):  # fmt: skip
        kernels.register(plain, own, "engine.products", cupy=form)
