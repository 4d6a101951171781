"""LayerNorm and the residual connection before it, again on CUDA kernels."""

import numpy as np

from ...engine.arrays import Array, namespace
from ...engine.autograd import Gradients
from ...engine.precision import wide
from ..fused import AddLayerNorm, LayerNormAlone, bias_gradient
from ..node import Fast
from . import cublas, spare_row
from .cuda import (
    allow_shared,
    as_bool,
    c_name,
    ceil_div,
    get,
    most_shared,
    pack,
    pointer,
    resident_blocks,
    type_of,
    usable,
)
from .side import aside
from .sums import can_sum, sum_columns, sum_rows

THREADS = 128  # in a block
ROWS_A_WARP = 4  # at least, in backward: each block's sums are one row more to add up at the end
IN_REGISTERS = 40  # numbers of a row that a thread can keep; longer rows are read again


def _row_template(channels: int, *arrays: Array | None) -> str | None:
    """`"T,W,C"` for the kernels that keep a row in registers, or None if they can't. Arrays that
    are not contiguous will be copied, to where a pack may start."""
    given = [a for a in arrays if a is not None]
    width = pack(channels, given[0].dtype, *[a for a in given if a.flags.c_contiguous])
    dtype = given[0].dtype
    if width * dtype.itemsize != 16 or channels > 32 * IN_REGISTERS:
        return None
    while width > 1 and 16 * width >= channels:
        width //= 2  # a short row keeps all threads of a warp busy with shorter packs
    return f"{c_name(dtype)},{width},{channels}"


def _back_template(channels: int, *arrays: Array | None) -> str | None:
    """The same for backward, which needs room in shared memory as well."""
    template, first = _row_template(channels, *arrays), arrays[0]
    assert first is not None
    fits = template and _shared(template, 3, first.dtype) <= most_shared(first.device.id)
    return template if fits else None


def _shared(template: str, sums: int, dtype: np.dtype) -> int:
    """Bytes of shared memory that backward takes: its sums, and packs of the next rows."""
    width, channels = map(int, template.split(",")[1:])
    row = ceil_div(channels, 32 * width) * 32 * width  # as a warp's packs have it
    return sums * channels * wide(dtype).itemsize + 2 * 3 * (THREADS // 32) * row * dtype.itemsize


class FastAddLayerNorm(Fast, AddLayerNorm):
    """Keeps s, which is alive as an output anyway, with the mean and 1 / sigma of each row."""

    any_dtype = True

    def suits(
        self, x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: Array,
        epsilon: float, bias_axis: int,
    ) -> bool:  # fmt: skip
        if not x.size:
            return False
        bias_axis = -1 if x.ndim == 1 else bias_axis  # which has one axis only
        self.bias_axis: int = bias_axis
        columns_bias = bias if bias_axis == -1 else None  # which is read in packs
        given = x, y, columns_bias, gamma, beta
        template = _row_template(x.shape[-1], *given)
        self.template: str | None = template
        self.name: str = (
            f"add_layer_norm<{template},{as_bool(keep is not None)}>"
            if template
            else f"add_layer_norm_any<{type_of(x)}>"
        )
        names = [self.name]
        if any(self.needs) and (template := _back_template(x.shape[-1], *given)):
            column_bias = as_bool(self.needs[2] and bias_axis == -1)
            names.append(f"add_layer_norm_backward<{template},{column_bias}>")
        return usable("layer_norm.cu", *names) and can_sum(x.dtype)

    def forward(
        self, x: Array, y: Array, bias: Array, gamma: Array, beta: Array, keep: Array,
        epsilon: float, bias_axis: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        bias_axis, template, name = self.bias_axis, self.template, self.name
        xp = namespace(x)
        channels, rows = x.shape[-1], x.size // x.shape[-1]
        x, gamma, beta = map(xp.ascontiguousarray, (x, gamma, beta))
        y, bias, keep = (None if a is None else xp.ascontiguousarray(a) for a in (y, bias, keep))
        examples = 0 if keep is None else len(keep)
        s = x if y is None and bias is None else xp.empty_like(x)
        # What follows is token mixing, unless the bias says that token mixing went before.
        wanted = x.ndim > 2 and bias_axis != 0 and cublas.can_fuse(x.dtype)
        ones = rows // x.shape[0] if wanted else 0
        h = spare_row.empty(x.shape, x.dtype) if ones else xp.empty_like(x)
        mean, inverse_sigma = xp.empty((2, rows), dtype=wide(x.dtype))
        kernel = get("layer_norm.cu", name)
        bias_rows = rows // x.shape[0] if bias_axis == 0 else 0
        kernel((ceil_div(rows + ones, 4),), (THREADS,), (
            x, pointer(y), pointer(bias), bias_rows, pointer(keep), examples, gamma, beta,
            epsilon, rows, ones,
            *([] if template else [np.int32(channels)]), s, h, mean, inverse_sigma,
        ))  # fmt: skip
        if any(self.needs):
            self.s: Array = s
            self.mean: Array = mean
            self.inverse_sigma: Array = inverse_sigma
            self.gamma: Array = gamma
            self.keep: Array = keep
        return s, h

    def backward(self, ds: Array, dh: Array) -> Gradients:
        if dh is None:
            dy = ds if self.keep is None else ds * self.keep[:, None]
            dbias = bias_gradient(dy, self.bias_axis) if self.needs[2] else None
            dx, dy = (d if need else None for d, need in zip((ds, dy), self.needs, strict=False))
            return dx, dy, dbias, None, None, None
        s, mean, inverse_sigma, gamma = self.s, self.mean, self.inverse_sigma, self.gamma
        keep = self.keep
        xp = namespace(s)
        channels, rows = s.shape[-1], s.size // s.shape[-1]
        repeated = dh.ndim > 1 and dh.strides[0] == 0 and dh[0].flags.c_contiguous
        dh = dh[0] if repeated else xp.ascontiguousarray(dh)
        dh_rows = dh.size // channels
        ds = None if ds is None else xp.ascontiguousarray(ds)
        dx = xp.empty_like(s)
        dy = None if keep is None else xp.empty_like(s)
        column_bias = self.needs[2] and self.bias_axis == -1
        row_bias = self.needs[2] and self.bias_axis == 0
        row_sums: Array = xp.empty(rows, dtype=mean.dtype) if row_bias else None
        template = _back_template(channels, dh, ds, s, gamma)
        examples = 0 if keep is None else len(keep)
        common = (
            dh, dh_rows, pointer(ds), s, mean, inverse_sigma, gamma, pointer(keep), examples, rows,
        )  # fmt: skip
        if template:
            sums = 3 if column_bias else 2
            name = f"add_layer_norm_backward<{template},{as_bool(column_bias)}>"
            kernel = get("layer_norm.cu", name)
            warps = ceil_div(rows, ROWS_A_WARP)
            shared = _shared(template, sums, s.dtype)
            allow_shared(kernel, shared)
            blocks = min(ceil_div(warps, 4), resident_blocks(kernel, THREADS, s.device.id, shared))
            partial = xp.empty((blocks, sums, channels), dtype=mean.dtype)
            kernel(
                (blocks,), (THREADS,), (*common, dx, pointer(dy), partial, pointer(row_sums)),
                shared_mem=shared,
            )  # fmt: skip
        else:
            kernel = get("layer_norm.cu", f"add_layer_norm_backward_any<{type_of(s)}>")
            kernel((ceil_div(rows, 4),), (THREADS,), (
                *common, np.int32(channels), dx, pointer(dy), pointer(row_sums),
            ))  # fmt: skip
            kernel = get("layer_norm.cu", f"add_layer_norm_sums_any<{type_of(s)}>")
            per_block = max(64, ceil_div(rows, 65535))
            stretches = ceil_div(rows, per_block)
            partial = xp.empty((stretches, 3, channels), dtype=mean.dtype)
            kernel((ceil_div(channels, THREADS), stretches), (THREADS,), (
                dh, dh_rows, dx if dy is None else dy, s, mean, inverse_sigma, rows,
                np.int32(channels), np.int32(per_block), partial,
            ))  # fmt: skip
        dy = dx if dy is None else dy
        results = [dx if self.needs[0] else None, dy if self.needs[1] else None, *[None] * 4]
        with aside(self, (2, 3, 4), partial, row_sums):
            if row_bias:
                row_sums = row_sums.reshape(s.shape[0], -1)
                results[2] = sum_columns(row_sums, out=self.destination(2))
            for position in (3, 4, 2) if column_bias else (3, 4):
                if self.needs[position]:
                    place = self.destination(position)
                    empty = xp.empty(channels, dtype=mean.dtype) if place is None else place
                    results[position] = empty
            sum_rows(partial, results[3], results[4], results[2] if column_bias else None)
        return tuple(results)


class FastLayerNorm(LayerNormAlone):
    """With nothing to add."""

    form: type[Fast] = FastAddLayerNorm
    any_dtype = True
