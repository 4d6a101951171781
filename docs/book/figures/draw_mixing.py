"""Which outputs depend on which inputs: token mixing, attention, convolution, channel mixing.

Measured, not thought out: for each number of the output, one backward through the layer itself, of
the package or of examples/baselines, with random weights and a random input. 16 tokens, a grid of
4 x 4, with 3 channels: 48 numbers in, 48 out.
"""

import numpy as np
from picture import Picture

from baselines.layers import Attention, Conv
from minimixer import Tensor
from minimixer.model.block import MixerMLP

S, C = 16, 3


def layers() -> dict[str, object]:
    """Layers from (S, 1, C) to the same, float64, all weights random."""
    attention, conv = Attention(C, heads=1), Conv((4, 4), C, C, kernel=3)
    made = {
        "token mixing": MixerMLP(S, 24, 0, "tanh"),
        "channel mixing": MixerMLP(C, 12, -1, "tanh"),
        "attention": attention,
        "convolution 3 x 3": conv,
    }
    rng = np.random.default_rng(1)
    for layer in made.values():
        layer.to("float64")
        for parameter in layer.parameters():
            parameter.data = rng.standard_normal(parameter.shape) / np.sqrt(len(parameter.data))
    made["convolution 3 x 3"] = lambda x: conv(x.reshape(1, 4, 4, C)).reshape(S, 1, C)
    return made


def dependence(layer, x: np.ndarray) -> np.ndarray:
    """(outputs, inputs): all |dy[j] / dx[i]|, both counted channel by channel of each token."""
    rows = []
    for j in range(x.size):
        leaf = Tensor(x, requires_grad=True)
        layer(leaf).reshape(-1)[j].backward()
        rows.append(abs(leaf.grad).ravel())
    return np.array(rows)


def draw() -> dict[str, str]:
    x = np.random.default_rng(2).standard_normal((S, 1, C))
    found = {name: dependence(layer, x) for name, layer in layers().items()}
    share = {name: np.mean(d > 1e-9 * d.max()) for name, d in found.items()}
    picture = Picture(
        518,
        "Four tables of 48 x 48: which of 48 outputs, 16 tokens with 3 channels each, depend on "
        "which inputs. "
        + "; ".join(f"{name}: {part:.0%} of all pairs" for name, part in share.items())
        + ". Token mixing joins all tokens within a channel, channel mixing all channels within a "
        "token, attention everything, a convolution all channels of neighbours.",
    )
    picture.text(220, 26, "which outputs depend on which inputs", "bold")
    picture.text(220, 46, "row: an output; column: an input; 16 tokens of 3 channels", "small")
    cell = 4
    for place, (name, table) in enumerate(found.items()):
        left, top = 18 + 212 * (place % 2), 88 + 226 * (place // 2)
        shown = np.sqrt(table)  # else few of attention's would be seen
        picture.text(left + S * C * cell / 2, top - 10, f"{name}: {share[name]:.0%}", "bold")
        picture.table(left, top, shown, cell, np.quantile(shown[shown > 0], 0.9))
    return {"mixing.svg": picture.svg()}
