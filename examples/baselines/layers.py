"""The parts of ViT and ResNet: attention, the encoder block; convolutions, bottlenecks, their body.

>>> block = EncoderBlock(channels=8, heads=2, mlp_dim=16, approximate="tanh")
>>> block(Tensor(np.ones((4, 2, 8), "float32"))).shape
(4, 2, 8)
>>> body = Body((28, 28), in_channels=1, block_counts=(1, 1), width=4, stem="small", groups=32)
>>> body(Tensor(np.ones((2, 28, 28, 1), "float32"))).shape
(2, 14, 14, 32)

Next: `models.py`, the models.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from baselines.operations import (
    Windows,
    conv2d,
    group_norm,
    max_pool,
    softmax,
    split_heads,
    weight_standardize,
)
from minimixer import Tensor
from minimixer.engine.dispatch import replaceable
from minimixer.model.block import MixerMLP
from minimixer.nn.layers import LayerNorm, Linear, Module, check_sizes, lecun_normal
from minimixer.nn.parameters import Parameter

# ---- ViT's --------------------------------------------------------------------------------------


@replaceable
def attention(qkv: Any, heads: int) -> Tensor:
    """qkv (S, B, 3 C), queries, keys and values side by side -> (S, B, C).

    softmax(q k^T / sqrt d) v for each image and head, d = C / heads (Vaswani et al. 2017). The
    chain rule is left to the engine, two products back for each one forward. Kept for backward
    above all: the weights (B, heads, S, S), quadratic in the number of tokens.
    """
    tokens, batch, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = split_heads(qkv, heads)
    q = q * (heads / channels) ** 0.5
    weights = softmax(q @ k.transpose(0, 1, 3, 2))  # (B, heads, S, S): rows sum to 1
    return (weights @ v).transpose(2, 0, 1, 3).reshape(tokens, batch, channels)


class Attention(Module):
    """Multi-head attention among the tokens of an image: qkv (C, 3 C), out (C, C), with biases."""

    def __init__(self, channels: int, heads: int):
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels, seed=None)
        self.out = Linear(channels, channels, seed=None)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        return self.out(attention(self.qkv(x), self.heads))


class EncoderBlock(Module):
    """LayerNorm, attention, LayerNorm, MLP, two skip connections: a Mixer block in which attention
    takes the place of token mixing."""

    def __init__(self, channels: int, heads: int, mlp_dim: int, approximate: str):
        self.norm1 = LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.mlp = MixerMLP(channels, mlp_dim, -1, approximate)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# ---- ResNet's -----------------------------------------------------------------------------------


class Conv(Module):
    """A convolution of a feature map of known size with a standardised weight, without bias.
    weight (kernel * kernel * in, out)."""

    def __init__(
        self, size: tuple[int, int], channels: int, out: int, kernel: int = 1, stride: int = 1
    ):  # fmt: skip
        self.kernel, self.stride = kernel, stride
        windows = Windows(*size, kernel, stride, kernel // 2)
        self.out_size = windows.rows, windows.columns
        self.weight = Parameter(np.zeros((kernel * kernel * channels, out), dtype=np.float32))

    def draw_weights(self, seed: int, layer: int) -> None:
        shape = self.weight.shape
        self.weight.data = lecun_normal(shape, shape[0], seed, layer)

    def forward(self, x: Tensor) -> Tensor:
        weight = weight_standardize(self.weight)
        precision = self.weight.buffer.precision
        return conv2d(x, weight, self.kernel, self.stride, self.kernel // 2, precision)

    def macs(self) -> int:
        return math.prod(self.out_size) * self.weight.size


class NormReLU(LayerNorm):
    """GroupNorm and ReLU, with LayerNorm's two parameters and its initial values."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, epsilon=1e-5)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.weight, self.bias, self.groups, self.epsilon, relu=True)


class Bottleneck(Module):
    """x + conv 1x1 (conv 3x3 (conv 1x1 (x))), a norm with ReLU before each (He et al. 2016b);
    where the shape changes, x is projected after the first norm. Channels in -> inner -> 4 inner.
    """

    def __init__(
        self, size: tuple[int, int], channels: int, inner: int, stride: int, groups: int
    ):  # fmt: skip
        out = 4 * inner
        self.norm1 = NormReLU(channels, groups)
        self.projection = Conv(size, channels, out, stride=stride) if channels != out else None
        self.conv1 = Conv(size, channels, inner)
        self.norm2 = NormReLU(inner, groups)
        self.conv2 = Conv(size, inner, inner, kernel=3, stride=stride)
        self.norm3 = NormReLU(inner, groups)
        self.conv3 = Conv(self.conv2.out_size, inner, out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        skip = x if self.projection is None else self.projection(h)
        h = self.conv1(h)
        h = self.conv2(self.norm2(h))
        return skip + self.conv3(self.norm3(h))


def _divisor(groups: int, width: int) -> int:
    """The largest divisor of `groups` and `width` that leaves two channels to a group, as BiT's 32
    of 64 do: of one channel on a small map little is left once its mean is gone."""
    fitting = (
        g
        for g in range(1, min(groups, width) + 1)
        if groups % g == width % g == 0 and width >= 2 * g
    )
    return max(fitting, default=1)


def check_body(block_counts: Sequence[int], width: int, stem: str, groups: int) -> None:
    """ValueError if a Body can't be of these sizes."""
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r:.40}")
    check_sizes(width=width, groups=groups, stages=len(block_counts))
    check_sizes(**{f"block_counts[{i}]": count for i, count in enumerate(block_counts)})


class Body(Module):
    """A ResNet without its head: images (B, H, W, in) -> (B, *out_size, out_channels).

    Every stage after the first halves height and width and doubles the channels.
    """

    def __init__(
        self, image_size: tuple[int, int], in_channels: int, block_counts: Sequence[int],
        width: int, stem: str, groups: int,
    ):  # fmt: skip
        check_body(block_counts, width, stem, groups)
        groups = _divisor(groups, width)
        self.pool = stem == "imagenet"
        self.root = Conv(image_size, in_channels, width, *((7, 2) if self.pool else (3, 1)))
        size, channels = self.root.out_size, width
        if self.pool:
            windows = Windows(*size, 3, 2, 1)
            size = windows.rows, windows.columns
        self.stages: list[list[Bottleneck]] = []
        for i, count in enumerate(block_counts):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(size, channels, width * 2**i, stride, groups))
                size, channels = blocks[-1].conv2.out_size, 4 * width * 2**i
            self.stages.append(blocks)
        self.norm = NormReLU(channels, groups)
        self.out_size, self.out_channels = size, channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.root(x)
        if self.pool:
            x = max_pool(x, kernel=3, stride=2, padding=1, fill=0.0)
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return self.norm(x)

    def macs(self) -> int:
        return sum(m.macs() for _, m in self.named_modules() if isinstance(m, Conv))

    @staticmethod
    def expected_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every weight, one after the other, from the sizes alone."""
        channels, kernel = config["width"], 7 if config["stem"] == "imagenet" else 3
        yield "root.weight", (kernel**2 * config["in_channels"], channels)
        for i, count in enumerate(config["block_counts"]):
            inner = config["width"] * 2**i
            for j in range(count):
                norms = {"norm1": channels, "norm2": inner, "norm3": inner}
                convs = {"conv1": (channels, inner), "conv2": (9 * inner, inner),
                         "conv3": (inner, 4 * inner)}  # fmt: skip
                if channels != 4 * inner:
                    convs["projection"] = channels, 4 * inner
                yield from ((f"stages.{i}.{j}.{name}.weight", s) for name, s in convs.items())
                for part in ("weight", "bias"):
                    yield from ((f"stages.{i}.{j}.{n}.{part}", (c,)) for n, c in norms.items())
                channels = 4 * inner
        yield from {"norm.weight": (channels,), "norm.bias": (channels,)}.items()
