"""One Mixer block: equation 1 of the paper, with its two skip connections.

    U = X + W2 gelu(W1 LayerNorm(X))          token mixing
    Y = U + gelu(LayerNorm(U) W3) W4          channel mixing

An MLP hands its last bias on, unadded, and a block its second sum: the LayerNorm that comes next
adds them up, in one pass. X is (S, B, C) here, tokens first; mixer.py says why.

>>> block = MixerBlock(tokens=4, channels=8, tokens_mlp_dim=3, channels_mlp_dim=16,
...                    approximate="tanh", stochastic_depth=0.0)
>>> x, y, bias = block(Tensor(np.ones((4, 2, 8), "float32")), None, None)
>>> x.shape, y.shape, bias.shape                     # the block's output is x + y + bias
((4, 2, 8), (4, 2, 8), (8,))

Next: `mixer.py`, the model.
"""

from typing import Any

import numpy as np

from . import functional as F
from .nn import LayerNorm, Module, StochasticDepth, lecun_normal
from .parameters import Parameter
from .tensor import Tensor


class MixerMLP(Module):
    """The token-mixing or the channel-mixing MLP: w1, b1, GELU, w2, b2.

    axis 0, tokens:    w1, w2 (S, D_S),              b1 (D_S,), b2 (S,)
    axis -1, channels: w1 (C, D_C), w2 (D_C, C),     b1 (D_C,), b2 (C,)
    """

    shown = ("axis", "approximate")

    def __init__(self, size: int, hidden: int, axis: int, approximate: str):
        self.axis, self.approximate = axis, approximate
        self.w1 = Parameter(np.zeros((size, hidden), dtype=np.float32))
        self.b1 = Parameter(np.zeros(hidden, dtype=np.float32))
        shape = (size, hidden) if axis == 0 else (hidden, size)
        self.w2 = Parameter(np.zeros(shape, dtype=np.float32))
        self.b2 = Parameter(np.zeros(size, dtype=np.float32))

    def draw_weights(self, seed: int, layer: int) -> None:
        size, hidden = self.w1.shape
        self.w1.data = lecun_normal(self.w1.shape, size, seed, layer)
        self.w2.data = lecun_normal(self.w2.shape, hidden, seed, layer, number=1)
        self.b1.data = np.zeros(hidden, dtype=np.float32)
        self.b2.data = np.zeros(size, dtype=np.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (S, B, C) -> (y without the last bias, that bias): whoever adds y to x adds both."""
        y = F.mlp(x, self.w1, self.b1, self.w2, axis=self.axis, approximate=self.approximate)
        return y, self.b2


class MixerBlock(Module):
    """One block: LayerNorm, token mixing, LayerNorm, channel mixing, two skip connections."""

    def __init__(
        self, tokens: int, channels: int, tokens_mlp_dim: int, channels_mlp_dim: int,
        approximate: str, stochastic_depth: float,
    ):  # fmt: skip
        self.norm1 = LayerNorm(channels)
        self.token_mixing = MixerMLP(tokens, tokens_mlp_dim, 0, approximate)
        self.norm2 = LayerNorm(channels)
        self.channel_mixing = MixerMLP(channels, channels_mlp_dim, -1, approximate)
        self.drop1 = StochasticDepth(stochastic_depth)
        self.drop2 = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor, y: Any, bias: Any) -> tuple[Tensor, Tensor, Any]:
        """x, y (S, B, C) and bias (C,): x + y + bias is the block's input. The skip connection is
        closed where it is needed, in one step with the LayerNorm that follows. Returns the block's
        output in the same form.
        """
        x, h = add_norm(x, y, bias, self.norm1)
        y, bias = _drop(self.drop1, self.token_mixing(h), axis=0)
        x, h = add_norm(x, y, bias, self.norm2, axis=0)
        y, bias = _drop(self.drop2, self.channel_mixing(h), axis=-1)
        return x, y, bias


def add_norm(x: Tensor, y: Any, bias: Any, norm: LayerNorm, axis: int = -1) -> Any:
    """`axis` is the one that the bias runs along: 0 for token mixing's, -1 for the others."""
    return F.add_layer_norm(x, y, bias, norm.weight, norm.bias, norm.epsilon, bias_axis=axis)


def _drop(layer: StochasticDepth, added: tuple[Tensor, Any], axis: int) -> tuple[Tensor, Any]:
    """What is dropped is all that the MLP adds, its last bias included."""
    y, bias = added
    if not layer.active:
        return y, bias
    return layer(F.add_bias(y, bias, axis)), None
