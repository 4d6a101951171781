"""One Mixer block: equation 1 of the paper, with its two skip connections.

    U = X + W2 gelu(W1 LayerNorm(X))          token mixing, along columns: shared by all channels
    Y = U + gelu(LayerNorm(U) W3) W4          channel mixing, along rows: shared by all tokens

with a bias beside each W. X is (S, B, C) here: S tokens of B images, C channels; mixer.py says why
tokens come first. The MLPs have D_S and D_C hidden units. W1 to W4 mean this on all pages.

What skips and LayerNorms are for shows in 48 such blocks with fresh weights (S 16, C 64, D_S 32,
D_C 256). A skip lets gradients past its MLP: for y = x + f(x), dx is dy and what f sends back. So
gradients of the first block's W3 are about 6 times those of the last one's. Without skips it is
30,000 times: LayerNorms enlarge the small numbers that fresh MLPs give, and gradients with them.
LayerNorm, in turn, gives each MLP numbers of one size, whatever X has become by what blocks add:
it grows from 1 to 6 (standard deviation), without LayerNorm to 2e8.

>>> import numpy as np
>>> from minimixer import Tensor
>>> from minimixer.model.block import MixerBlock
>>> block = MixerBlock(tokens=4, channels=8, tokens_mlp_dim=3, channels_mlp_dim=16,
...                    approximate="tanh", stochastic_depth=0.0)
>>> block(Tensor(np.ones((4, 2, 8), "float32"))).shape
(4, 2, 8)

Next: `mixer.py`, the model.
"""

from collections.abc import Callable

import numpy as np

from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..engine.tensor import Tensor
from ..nn import functional as F
from ..nn.layers import LayerNorm, Module, StochasticDepth, lecun_normal
from ..nn.parameters import Parameter


class MixerMLP(Module):
    """The token-mixing or the channel-mixing MLP: w1, b1, GELU, w2, b2.

        axis 0      tokens: w1 and w2 (S, D_S), b1 (D_S,), b2 (S,); W1 is w1^T, W2 is w2
        axis -1     channels: w1 (C, D_C), w2 (D_C, C), b1 (D_C,), b2 (C,); W3 is w1, W4 is w2

    For the tokens both have a row for each place: shuffled patches are shuffled rows.

    The tokens' b2 has gradient 0, but for rounding: it adds one number to all channels of a token.
    Skips carry that past blocks, to the last LayerNorm; but each LayerNorm takes off the mean."""

    shown: tuple[str, ...] = ("axis", "approximate")

    def __init__(self, size: int, hidden: int, axis: int, approximate: str):
        self.axis = axis
        self.approximate = approximate
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

    @replaceable
    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        if self.axis == 0:
            return F.linear_first(self.hidden(x), self.w2, self.b2)
        return F.linear(self.hidden(x), self.w2, self.b2)

    def hidden(self, x: Tensor) -> Tensor:
        """(S, B, C) -> the hidden units, (D_S, B, C) or (S, B, D_C)"""
        if self.axis == 0:
            return F.gelu(F.linear_first(x, self.w1, self.b1, transposed=True), self.approximate)
        return F.gelu(F.linear(x, self.w1, self.b1), self.approximate)


class MixerBlock(Module):
    """One block: LayerNorm, token mixing, LayerNorm, channel mixing, two skip connections.
    `norm`: another class in place of LayerNorm, made as norm(channels)."""

    def __init__(
        self, tokens: int, channels: int, tokens_mlp_dim: int, channels_mlp_dim: int,
        approximate: str, stochastic_depth: float, norm: Callable[[int], Module] = LayerNorm,
    ):  # fmt: skip
        self.norm1 = norm(channels)
        self.token_mixing = MixerMLP(tokens, tokens_mlp_dim, 0, approximate)
        self.norm2 = norm(channels)
        self.channel_mixing = MixerMLP(channels, channels_mlp_dim, -1, approximate)
        self.drop1 = StochasticDepth(stochastic_depth)  # of 0: x as it is
        self.drop2 = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        x = x + self.drop1(self.token_mixing(self.norm1(x)))
        x = x + self.drop2(self.channel_mixing(self.norm2(x)))
        return x
