"""GroupNorm and convolution again, on CUDA kernels: group_norm.cu and windows.cu.

They stand in for operations.py's on a GPU while that file is what they were compared with, and not
under kernels.use("reference"). Softmax and attention's products have fast forms in the package.
"""

from pathlib import Path
from typing import Any

import numpy as np

from baselines.operations import Conv2d, GroupNorm, Windows
from minimixer import kernels
from minimixer.backend import Array, namespace
from minimixer.kernels.gpu import cublas
from minimixer.kernels.gpu.cuda import as_bool, ceil_div, get, pack, type_of, usable
from minimixer.kernels.gpu.sums import can_sum, sum_rows
from minimixer.kernels.node import Fast

COMPARED = "85fb47ee7ac06e6fd6fe5d2268bc64ad"  # operations.py's digest
HERE = Path(__file__).parent
GROUP_NORM, WINDOWS = str(HERE / "group_norm.cu"), str(HERE / "windows.cu")
THREADS = 512


class FastGroupNorm(Fast, GroupNorm):
    """A block for each image; ReLU's slope is worked out again, so y need not be kept."""

    def suits(self, x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, relu: bool):
        options = self.options(x, relu)
        names = f"group_norm<{options}>", f"group_norm_backward<{options}>"
        few = x.shape[3] // self.width <= THREADS
        return few and usable(GROUP_NORM, *names) and can_sum(x.dtype)

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
        kernel = get(GROUP_NORM, f"{name}<{self.options(x, self.relu)}>")
        across = channels // self.width
        threads = across * max(1, THREADS // across)
        numbers = 2 * channels + max(2 * threads * self.width, 2 * self.groups)
        sizes = np.int32(height * width), np.int32(channels), np.int32(self.groups)
        kernel((batch,), (threads,), (*inputs, *sizes, *outputs), shared_mem=numbers * x.itemsize)


class FastConv2d(Fast, Conv2d):
    """Patches are cut without a padded copy, and gathered without one."""

    def suits(self, x: Array, weight: Array, **sizes: Any) -> bool:
        options = self.options(x)
        return x.size > 0 and usable(WINDOWS, f"cut<{options}>", f"uncut<{options}>")

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
                rows = cublas.matmul(d, self.weight.T, precision=self.precision)
                self.uncut(rows, dx[part])
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

    def uncut(self, rows: Array, dx: Array) -> None:
        """What the patches' gradients add up to, into `dx`."""
        if self.windows.kernel == self.windows.stride == 1:
            dx[...] = rows.reshape(dx.shape)
        else:
            self.start("uncut", dx, rows, dx)

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
    """What there is of fast forms, where there is CuPy."""
    kernels.register(GroupNorm, COMPARED, cupy=FastGroupNorm)
    kernels.register(Conv2d, COMPARED, cupy=FastConv2d)
