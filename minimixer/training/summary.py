"""What a model costs, layer by layer, from its sizes alone.

A product of an m x k with a k x n matrix takes m k n multiply-accumulates (MACs). Training keeps
for backward what the functions of functional.py save: LayerNorm its x_hat and 1/sigma, a linear
layer its input, an MLP its input, its hidden activation and the slope of GELU there. The kernels
save instead: LayerNorm its input, mean and 1/sigma; on a GPU an MLP its input and what goes into
GELU, token mixing and small models also what comes out (on Hopper GPUs token mixing doesn't, and
channel mixing does unless it is large, with GELU's slope in place of what goes in).

>>> from minimixer import Mixer
>>> table = Mixer.summary_of("mixer_b16")
>>> table.parameters, round(table.macs / 1e9, 3), len(table.rows)
(59880472, 12.602, 51)
"""

import math
from typing import Any, NamedTuple

from ..nn.describe import Table


class Row(NamedTuple):
    """One layer for a batch: `activation_bytes` is what it keeps for backward."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


class Summary:
    """The table for `batch_size` images; `str` of it is text. `rows` holds the figures.

    parameters, macs, activation_bytes: the sums. `itemsize`: bytes of one activation, 8, 4 or 2;
    `kernels`: whose way of keeping them, "cpu", "gpu" or "reference". A norm in place of LayerNorm
    has its own parameters, and is taken to keep as much as the plain LayerNorm.
    """

    def __init__(
        self, config: dict[str, Any], batch_size: int = 1, itemsize: int = 4, kernels: str = "cpu"
    ):
        self.batch_size = batch_size
        self.itemsize = itemsize
        self.config = config
        self.rows: list[Row] = _rows(config, batch_size, itemsize, kernels)
        self.parameters: int = sum(row.parameters for row in self.rows)
        self.macs: int = sum(row.macs for row in self.rows)
        self.activation_bytes: int = sum(row.activation_bytes for row in self.rows)

    def training_bytes(self, checkpoint_blocks: bool = False) -> int:
        """About how much memory a training step with AdamW takes, at its peak.

        The parameters five times (values, gradients, AdamW's two averages, two-byte copies), what
        is kept for backward, and the arrays that backward of the last block's channel mixing
        works on. With `checkpoint_blocks` two arrays of each block are kept, and all of one.
        """
        grid = self.rows[1].output_shape  # (S, B, C)
        one = math.prod(grid) * self.itemsize
        hidden = grid[0] * grid[1] * self.config["channels_mlp_dim"] * self.itemsize
        kept = self.activation_bytes
        if checkpoint_blocks:
            blocks = sum(r.activation_bytes for r in self.rows if r.name.startswith("blocks"))
            count = self.config["num_blocks"]
            kept += blocks // count - blocks + (2 * count + 2) * one
        wide = max(4, self.itemsize)
        copies = 4 * wide + (self.itemsize if self.itemsize < wide else 0)
        return self.parameters * copies + kept + hidden + 3 * one

    def __str__(self) -> str:
        cells = [["layer", "output shape", "parameters", "MACs", "activation bytes"]]
        for layer in self.rows:
            cells.append([layer.name, str(layer.output_shape), *(f"{n:,}" for n in layer[2:])])
        totals = (self.parameters, self.macs, self.activation_bytes)
        cells.append(["total", f"batch of {self.batch_size}", *(f"{n:,}" for n in totals)])
        return str(Table(cells, words=2))

    __repr__ = __str__


def _rows(config: dict[str, Any], batch: int, itemsize: int, kernels: str) -> list[Row]:
    height, width = config["image_size"]
    patch, channels = config["patch_size"], config["hidden_dim"]
    d_s, d_c = config["tokens_mlp_dim"], config["channels_mlp_dim"]
    classes = config["num_classes"]
    tokens = (height // patch) * (width // patch)
    pixels = patch * patch * config["in_channels"]
    grid = (tokens, batch, channels)
    elements = tokens * batch * channels
    wide = max(4, itemsize)  # what two-byte numbers are computed in, and kept in by plain code
    stored = itemsize if kernels == "gpu" else wide
    copied = wide if stored > itemsize else 0  # of each weight that forward keeps
    fast: Any = None
    if kernels != "reference":
        from ..kernels import kept as fast  # what the fast forms keep in place of that

    def linear(
        name: str, shape: tuple[int, ...], n_in: int, n_out: int, rows: int, width: int
    ) -> Row:
        return Row(name, shape, n_in * n_out + n_out, rows * n_in * n_out, rows * n_in * width)

    own = config["norm"](channels).num_parameters() if "norm" in config else None

    def norm(name: str) -> Row:
        kept = (elements + tokens * batch) * wide + channels * copied  # x_hat, 1 / sigma, gamma
        if own is not None:
            return Row(name, grid, own, 0, kept)
        if fast:
            kept = fast.by_norm(kernels, channels, tokens * batch, stored, wide, copied) or kept
        return Row(name, grid, 2 * channels, 0, kept)

    def mlp(name: str, size: int, hidden: int, columns: int, is_first: bool) -> Row:
        weights = 2 * size * hidden
        kept = (elements + 2 * hidden * columns) * stored + weights * copied  # x, g, GELU's slope
        if fast:
            form = config["approximate"]
            kept = fast.by_mlp(kernels, size, hidden, columns, itemsize, is_first, form) or kept
        return Row(name, grid, weights + hidden + size, weights * columns, kept)

    rows = [linear("stem", grid, pixels, channels, tokens * batch, stored)]
    for i in range(config["num_blocks"]):
        rows += [
            norm(f"blocks.{i}.norm1"),
            mlp(f"blocks.{i}.token_mixing", tokens, d_s, batch * channels, True),
            norm(f"blocks.{i}.norm2"),
            mlp(f"blocks.{i}.channel_mixing", channels, d_c, tokens * batch, False),
        ]
    head = [linear("head", (batch, classes), channels, classes, batch, wide)] if classes else []
    return [*rows, norm("norm"), *head]
