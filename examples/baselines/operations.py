"""What ViT and ResNet need and Mixer does not: heads, convolution, pooling, GroupNorm.

Written like the package's own functions: forward beside backward, the gradient derived by hand
above it, arrays of NumPy or CuPy alike, in float32 or float64 (two-byte activations are Mixer's
alone). dx stands for dL/dx; sums run over all indices that do not appear on the left. Images are
(B, H, W, channels), tokens (S, B, C), as in the package.

>>> import numpy as np
>>> image = Tensor(np.arange(9.0).reshape(1, 3, 3, 1))
>>> print(conv2d(image, Tensor(np.ones((4, 1))), kernel=2).data[0, :, :, 0])  # sums of 2 x 2 pixels
[[ 8. 12.]
 [20. 24.]]
>>> print(max_pool(image, kernel=2).data[0, :, :, 0])
[[4. 5.]
 [7. 8.]]

Next: `layers.py`, layers made of these.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from minimixer.functional import softmax as softmax

from minimixer import Function, Tensor
from minimixer.backend import Array, namespace
from minimixer.engine.products import matmul, sum_rows

# ---- what attention needs -----------------------------------------------------------------------


class SplitHeads(Function):
    """(S, B, 3 C) -> queries, keys and values, each (B, heads, S, C / heads): views, no copies.
    Backward puts the three gradients side by side again."""

    takes_numbers = False

    def forward(self, x, heads):
        if x.ndim != 3 or x.shape[2] % (3 * heads) or not x.shape[2]:
            raise ValueError(f"needs (S, B, 3 C) with C a multiple of {heads} heads")
        self.shape = x.shape
        self.split = (*x.shape[:2], 3, heads, x.shape[2] // (3 * heads))  # (S, B, 3, heads, d)
        return tuple(x.reshape(self.split).transpose(2, 1, 3, 0, 4))

    def backward(self, *gradients):
        given = [gradient for gradient in gradients if gradient is not None]
        dx = namespace(given[0]).zeros(self.split, dtype=given[0].dtype)
        for part, gradient in enumerate(gradients):
            if gradient is not None:
                dx[:, :, part] = gradient.transpose(2, 0, 1, 3)
        return dx.reshape(self.shape)


def split_heads(x: Any, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (S, B, 3 C) -> q, k, v (B, heads, S, C / heads). ValueError if C does not divide."""
    return SplitHeads.apply(x, heads=heads)


# ---- windows on an image ------------------------------------------------------------------------


class Windows:
    """Where the kernel x kernel windows lie, `stride` pixels apart, on images of H x W pixels.

    padding: so many pixels on every side; or "same": as many as it takes for ceil(H / stride)
    rows of windows, the odd one at the end. `rows`, `columns`: the number of windows. ValueError
    if there is none, or if the padding is wider than half a window.
    """

    def __init__(self, height: int, width: int, kernel: int, stride: int, padding: int | str):
        self.kernel, self.stride, self.image = kernel, stride, (height, width)
        least = 0 if padding == "same" else int(padding)
        if kernel < 1 or stride < 1 or not 0 <= 2 * least <= kernel:
            raise ValueError(
                f"kernel {kernel} and stride {stride} must be positive, padding {padding!r} 'same' "
                "or from 0 to half of the kernel"
            )
        self.pads, counts = [], []
        for size in (height, width):
            if padding == "same":
                missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                pads = missing // 2, missing - missing // 2
            else:
                pads = int(padding), int(padding)
            self.pads.append(pads)
            counts.append((size + sum(pads) - kernel) // stride + 1)
        self.rows, self.columns = counts
        if min(counts) < 1:
            pixels = f"{height} x {width} pixels with padding {padding}"
            raise ValueError(f"{pixels} hold no {kernel} x {kernel} window")

    @classmethod
    def over(cls, x: Array, *sizes: Any) -> "Windows":
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError("images must be (B, H, W, channels), and not empty")
        return cls(*x.shape[1:3], *sizes)

    def padded(self, x: Array, value: float = 0.0) -> Array:
        """x (B, H, W, channels) with `value` around it; x itself if there is no padding."""
        if not any(map(sum, self.pads)):
            return x
        return namespace(x).pad(x, ((0, 0), *self.pads, (0, 0)), constant_values=value)

    def padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (
            shape[0],
            *(n + sum(p) for n, p in zip(shape[1:3], self.pads, strict=True)),
            shape[3],
        )

    def cropped(self, padded: Array) -> Array:
        """Without the padding: a view."""
        (top, _), (left, _), (height, width) = *self.pads, self.image
        return padded[:, top : top + height, left : left + width]

    def shifts(self, padded: Array) -> Iterator[Array]:
        """For each place in a window, in reading order, its pixel of all windows: views
        (B, rows, columns, channels), in none of which a pixel occurs twice."""
        reach = self.stride * (self.rows - 1) + 1, self.stride * (self.columns - 1) + 1
        for i in range(self.kernel):
            for j in range(self.kernel):
                yield padded[:, i : i + reach[0] : self.stride, j : j + reach[1] : self.stride]

    def patches(self, padded: Array) -> Array:
        """(B, rows, columns, kernel, kernel * channels): every window whole, as a view in which
        pixels occur as often as windows overlap. Not to be written to."""
        padded = namespace(padded).ascontiguousarray(padded)
        # Its own strides may be anything along an axis of length 1.
        image, row, pixel, element = (
            padded.itemsize * math.prod(padded.shape[axis:]) for axis in range(1, 5)
        )
        shape = len(padded), self.rows, self.columns, self.kernel, pixel // element * self.kernel
        strides = image, row * self.stride, pixel * self.stride, row, element
        return namespace(padded).lib.stride_tricks.as_strided(padded, shape, strides)


# ---- convolution --------------------------------------------------------------------------------


class Conv2d(Function):
    """y[b, r, c, o] = sum_ijm x[b, s r + i - pad, s c + j - pad, m] W[(i, j, m), o], x 0 outside.

    With the patches cut out and laid in rows, P (B rows columns, k k in), this is one product:
        y = P W,   dW = P^T dy,   dP = dy W^T,
    and a pixel's dx is the sum of dP over all places where it was copied to. P is about k^2/s^2
    times as large as x: it is cut for a few images at a time, multiplied and forgotten, and cut
    once more in backward. Kept: x and W.
    """

    takes_numbers = False

    @staticmethod
    def check(x, weight, kernel, stride, padding, precision):
        Windows.over(x, kernel, stride, padding)
        rows = kernel * kernel * x.shape[3]
        if weight.ndim != 2 or len(weight) != rows or not weight.size:
            raise ValueError(f"weight must be (kernel * kernel * in, out) with {rows} rows")

    def forward(self, x, weight, kernel, stride, padding, precision):
        self.check(x, weight, kernel, stride, padding, precision)
        windows = self.windows = Windows.over(x, kernel, stride, padding)
        self.x = x if self.needs[1] else None
        self.weight = weight if self.needs[0] else None
        self.shape, xp = x.shape, namespace(x)
        padded = windows.padded(x)
        y = xp.empty((len(x), windows.rows, windows.columns, weight.shape[1]), dtype=x.dtype)
        for part in self.parts(x):
            rows = self.rows(padded[part])
            matmul(rows, weight, out=y[part].reshape(len(rows), -1))
        return y

    def backward(self, dy):
        xp, windows, dpadded, dweight = namespace(dy), self.windows, None, None
        channels, out = self.shape[3], dy.shape[3]
        dy = xp.ascontiguousarray(dy)
        if self.needs[0]:
            dpadded = xp.zeros(windows.padded_shape(self.shape), dtype=dy.dtype)
        if self.needs[1]:
            padded = windows.padded(self.x)
            dweight = xp.zeros((windows.kernel**2 * channels, out), dtype=dy.dtype)
        for part in self.parts(dy):
            d = dy[part].reshape(-1, out)
            if self.needs[1]:
                rows = self.rows(padded[part])
                matmul(rows.T, d, out=dweight, accumulate=True)
            if self.needs[0]:
                drows = matmul(d, self.weight.T)
                places = drows.reshape(*dy[part].shape[:3], -1, channels)
                for place, pixels in enumerate(windows.shifts(dpadded[part])):
                    pixels += places[:, :, :, place]
        return None if dpadded is None else windows.cropped(dpadded), dweight

    def rows(self, padded: Array) -> Array:
        """The patches of some images as a matrix; of a 1 x 1 kernel with stride 1 a view."""
        length = self.windows.kernel**2 * padded.shape[3]
        return self.windows.patches(padded).reshape(-1, length)

    def parts(self, images: Array) -> list[slice]:
        """On the CPU so many images that their patches stay in its cache; on a GPU up to 1 GiB."""
        windows, count = self.windows, len(images)
        one = windows.rows * windows.columns * windows.kernel**2 * self.shape[3] * images.itemsize
        step = count
        if windows.kernel > 1:
            step = max(1, (1 << 20 if namespace(images) is np else 1 << 30) // one)
        return [slice(start, start + step) for start in range(0, count, step)]


def conv2d(
    x: Any, weight: Any, kernel: int, stride: int = 1, padding: int | str = 0,
    precision: str | None = None,
) -> Tensor:  # fmt: skip
    """x (B, H, W, in), weight (kernel * kernel * in, out) -> (B, rows, columns, out).

    The weight's rows are in (row, column, channel) order, as those of Mixer's stem. `padding` with
    zeros: see Windows. "tf32" lets a GPU's products read float32 with short mantissas. A
    correlation, as everywhere in this field. ValueError on shapes.
    """
    sizes = {"kernel": kernel, "stride": stride, "padding": padding}
    return Conv2d.apply(x, weight, **sizes, precision=precision)


class MaxPool(Function):
    """y = the largest of each window, per channel: its pixel, the first one if several are equal,
    gets the window's dy; a pixel that wins in several windows, their sum. Kept: who won."""

    takes_numbers = False

    def forward(self, x, kernel, stride, padding, fill):
        windows = self.windows = Windows.over(x, kernel, stride, padding)
        xp = namespace(x)
        padded = windows.padded(x, fill)
        self.shape = padded.shape
        y = winner = None
        for place, pixels in enumerate(windows.shifts(padded)):
            if y is None:
                y = pixels.copy()
                winner = xp.zeros(y.shape, dtype=np.min_scalar_type(kernel * kernel))
            else:
                winner = xp.where(pixels > y, winner.dtype.type(place), winner)
                xp.maximum(y, pixels, out=y)
        self.winner = winner if self.needs[0] else None
        return y

    def backward(self, dy):
        dpadded = namespace(dy).zeros(self.shape, dtype=dy.dtype)
        for place, pixels in enumerate(self.windows.shifts(dpadded)):
            pixels += dy * (self.winner == place)
        return self.windows.cropped(dpadded)


def max_pool(
    x: Any, kernel: int, stride: int = 1, padding: int | str = 0, fill: float = -math.inf
) -> Tensor:  # fmt: skip
    """x (B, H, W, C) -> (B, rows, columns, C), the largest of each window; `fill` is what the
    padding holds (0 in BiT). See Windows. ValueError on shapes."""
    return MaxPool.apply(x, kernel=kernel, stride=stride, padding=padding, fill=float(fill))


# ---- normalisation ------------------------------------------------------------------------------


class GroupNorm(Function):
    """y = gamma x_hat + beta, x_hat = (x - mean) / sigma, then max(y, 0) if `relu`;

    mean and sigma^2 = variance + epsilon over all pixels and the C / groups channels of a group, in
    each image. It is LayerNorm whose rows are such groups, and so is its gradient:
        dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma,   dx_hat = gamma dy.
    gamma and sigma do not vary between pixels. So with c = x - mean kept in place of x_hat, all
    that is large enters linearly, times vectors of C numbers an image; and the means follow
    from the sums over pixels of dy and dy c, which give dbeta and dgamma too:
        dx = dy (gamma / sigma) - c mean(dx_hat x_hat) / sigma^2 - mean(dx_hat) / sigma.
    Kept: c, and y for `relu`.
    """

    takes_numbers = False

    @staticmethod
    def check(x, gamma, beta, groups, epsilon, relu):
        channels = x.shape[3] if x.ndim == 4 else 0
        if not channels or channels % groups or 0 in x.shape:
            raise ValueError(f"x must be (B, H, W, channels), channels a multiple of {groups}")
        if gamma.shape != (channels,) or beta.shape != (channels,):
            raise ValueError(f"gamma and beta must have shape ({channels},)")

    def forward(self, x, gamma, beta, groups, epsilon, relu):
        self.check(x, gamma, beta, groups, epsilon, relu)
        xp = namespace(x)
        self.shape, self.groups = x.shape, groups
        x = self.image_rows(x)
        centred = x - self.for_rows(self.group_mean(self.pixel_sum(x)))
        variance = self.group_mean(self.pixel_sum(centred * centred))
        inverse_sigma = 1 / xp.sqrt(variance + epsilon)  # (B, C)
        y = centred * self.for_rows(gamma * inverse_sigma)
        y += self.for_rows(beta[None])
        if relu:
            xp.maximum(y, 0, out=y)
        y = y.reshape(self.shape)
        if any(self.needs):
            self.centred, self.inverse_sigma, self.gamma = centred, inverse_sigma, gamma
            self.y = y if relu else None
        return y

    def backward(self, dy):
        if self.y is not None:
            dy = dy * (self.y > 0)
        dy = self.image_rows(dy)
        sum_dy = self.pixel_sum(dy)  # (B, C)
        sum_dy_x_hat = self.pixel_sum(dy * self.centred) * self.inverse_sigma
        dx = None
        if self.needs[0]:
            along = self.group_mean(self.gamma * sum_dy_x_hat) * self.inverse_sigma**2
            shift = self.group_mean(self.gamma * sum_dy) * self.inverse_sigma
            dx = dy * self.for_rows(self.gamma * self.inverse_sigma)
            dx -= self.centred * self.for_rows(along)
            dx -= self.for_rows(shift)
            dx = dx.reshape(self.shape)
        dgamma = sum_dy_x_hat.sum(axis=0) if self.needs[1] else None
        return dx, dgamma, sum_dy.sum(axis=0) if self.needs[2] else None

    def image_rows(self, x: Array) -> Array:
        """(B, H, W, C) as (B, H, W C): NumPy is quicker on long rows than on C numbers each."""
        batch, height, width, channels = self.shape
        return x.reshape(batch, height, width * channels)

    def for_rows(self, vectors: Array) -> Array:
        """(B, C) or (1, C) -> (B, 1, W C), to go with `image_rows`."""
        return namespace(vectors).tile(vectors[:, None], (1, 1, self.shape[2]))

    def pixel_sum(self, x: Array) -> Array:
        """(B, H, W C) -> (B, C), as ones @ x, which is quicker than .sum: see sum_rows."""
        batch, height, width, channels = self.shape
        ones = namespace(x).ones((batch, 1, height * width), dtype=x.dtype)
        return matmul(ones, x.reshape(batch, height * width, channels))[:, 0]

    def group_mean(self, sums: Array) -> Array:
        """Sums over pixels (B, C) -> the mean over pixels and channels of a group, repeated for
        each of its channels (B, C)."""
        batch, height, width, channels = self.shape
        size = channels // self.groups
        means = sums.reshape(batch, self.groups, size).sum(axis=2)
        means /= height * width * size
        return means.repeat(size, axis=1)


def group_norm(
    x: Any, gamma: Any, beta: Any, groups: int, epsilon: float = 1e-5, relu: bool = False
) -> Tensor:
    """x (B, H, W, C) -> the same shape: mean 0 and variance 1 over the pixels and channels of each
    of `groups` groups, times gamma (C,) plus beta (C,), and max(., 0) with `relu`. ValueError on
    shapes. Wu and He 2018; epsilon as in BiT's code."""
    return GroupNorm.apply(x, gamma, beta, groups=groups, epsilon=float(epsilon), relu=relu)


class WeightStandardize(Function):
    """Every column of a weight (in, out) to mean 0 and variance 1 before it is used.

    The gradient is LayerNorm's, along columns: dw = (dy - mean(dy) - y mean(dy y)) / sigma. What
    would only scale or shift a column has no effect, and gets no gradient. Kept: y, 1 / sigma.
    """

    takes_numbers = False

    @staticmethod
    def check(weight, epsilon):
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError("weight must be (in, out), and not empty")

    def forward(self, weight, epsilon):
        self.check(weight, epsilon)
        y = weight - sum_rows(weight) / len(weight)
        inverse_sigma = 1 / namespace(y).sqrt(sum_rows(y * y) / len(y) + epsilon)
        y *= inverse_sigma
        if self.needs[0]:
            self.y, self.inverse_sigma = y, inverse_sigma
        return y

    def backward(self, dy):
        y, count = self.y, len(dy)
        dweight = dy - sum_rows(dy) / count
        dweight -= y * (sum_rows(dy * y) / count)
        dweight *= self.inverse_sigma
        return dweight


def weight_standardize(weight: Any, epsilon: float = 1e-10) -> Tensor:
    """weight (in, out) -> the same shape: each column to mean 0 and variance 1. ValueError on
    shapes. Qiao et al. 2019; epsilon as in BiT's code."""
    return WeightStandardize.apply(weight, epsilon=float(epsilon))
