"""MLP-Mixer: the paper's figure 1 as text, with the shape at every arrow.

The letters, here and everywhere: B images, S = (H / P) (W / P) tokens, C channels (hidden_dim), D_S
and D_C hidden units of the two MLPs, K classes; W1 to W4 as in block.py.

    images                              --> (B, H, W, in)
    cut into P x P patches              --> (S, B, P*P*in)     one token each
    stem: per-patch linear projection   --> (S, B, C)
        +- mixer block, num_blocks times -------------------------------------------------+
        |  LayerNorm                    --> (S, B, C)                                     |
        |  token mixing: W1, GELU       --> (D_S, B, C)        each channel's S tokens    |
        |                W2             --> (S, B, C)          through one shared MLP     |
        |  + skip connection            --> (S, B, C)          U in equation 1            |
        |  LayerNorm                    --> (S, B, C)                                     |
        |  channel mixing: W3, GELU     --> (S, B, D_C)        each token's C channels    |
        |                  W4           --> (S, B, C)          through one shared MLP     |
        |  + skip connection            --> (S, B, C)          Y in equation 1            |
        +---------------------------------------------------------------------------------+
    LayerNorm                           --> (S, B, C)
    mean over the tokens                --> (B, C)
    head: linear                        --> (B, K)             one score for each class

Where did the transposes go? The paper keeps (B, S, C) and transposes before and after every token
mixing. Here tokens come first: as an S x (B*C) matrix x is ready for token mixing from the left,
W1 x, and as an (S*B) x C matrix for channel mixing from the right, x W3: two views of one memory.

The head's weights start at 0, as the authors' do: all scores are 0, the loss is log K, and what the
head sends back, dy W^T, is 0. So after the first backward all gradients but the head's are exactly
0: the first step moves the head (weight decay, optimizer.py, the matrices), the second everything.

A place in the image has weights of its own in token mixing: a row of w1, w2 and b2. So shuffled
patches give other scores. But one and the same shuffle of all images, with these rows shuffled
likewise, leaves all scores as they were.

An image costs 2 S C (D_S + D_C) multiplications a block: linear in the tokens, where attention,
the layer of transformers, which compares all pairs of tokens, costs 2 S^2 C. But only while D_S
stays. Images n times as wide and high have n^2 times the tokens; the paper, which trains models
further on such, makes D_S n^2 times as large too: then the cost is quadratic, as with D_S = S.

>>> import numpy as np
>>> from minimixer import Mixer
>>> model = Mixer(image_size=28, patch_size=7, in_channels=1, num_classes=10,
...               num_blocks=2, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64)
>>> model(np.zeros((5, 28, 28, 1), dtype="uint8")).shape
(5, 10)

Next: `training/schedules.py`, gradient descent, and how its learning rate changes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..engine.tensor import Tensor
from ..nn.layers import LayerNorm, Linear
from ..nn.module import Module
from ..nn.recompute import recompute  # forget, and compute again when backward comes
from .block import MixerBlock as MixerBlock
from .block import MixerMLP as MixerMLP
from .images import Normalization, to_tokens
from .precision import Precision, advised, in_precision  # in float32 they only call the method
from .trained import Trained  # files, predictions, features, the paper's variants by name
from .variants import check_config, check_names, check_preparation


class Mixer(Trained, Precision, Module):
    """The network of the paper, for images (B, H, W, in_channels).

    image_size        H = W, or (H, W); both divisible by patch_size
    patch_size        P
    num_blocks        N;  hidden_dim C;  tokens_mlp_dim D_S;  channels_mlp_dim D_C
    stochastic_depth  probability of skipping in the last block, growing from 0 in the first
    approximate       GELU: "tanh", the authors' form, or "none", exact
    mean, std         per channel, in units of the pixel range: uint8 images become
                      (x / 255 - mean) / std; 0.5 and 0.5 are the authors'
    class_names       optional, one for each class
    num_classes       K; 0: no head, and the features before it (B, C) in place of scores
    seed, dtype       initial weights (None: left at 0, LayerNorm's at 1); "float32" or "float64"
    precision         to compute with: "float32", or, faster on GPUs, with fewer digits: "tf32",
                      "bfloat16", "float16", as set_precision says
    checkpoint_blocks keep only each block's input for backward, and compute the rest again: less
                      memory, more time, the same bits. It may be changed later
    norm              a class of your own in place of LayerNorm, made as norm(channels): (S, B, C)
                      to the same. A file of weights keeps its name; give it again to load
    preparation       "digit": pictures of one's own must first be made like MNIST's (predict.py)
    ValueError for sizes that are no whole numbers above zero or do not fit together; TypeError for
    a seed that is no whole number, or what is no dtype or list of names. Section 2 of the paper.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        num_blocks: int,
        hidden_dim: int,
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
        in_channels: int = 3,
        num_classes: int = 1000,
        stochastic_depth: float = 0.0,
        approximate: str = "tanh",
        mean: Any = 0.5,
        std: Any = 0.5,
        class_names: Any = None,
        seed: int | None = 0,
        dtype: str = "float32",
        precision: str = "float32",
        checkpoint_blocks: bool = False,
        preparation: str | None = None,
        norm: Callable[[int], Module] = LayerNorm,
    ):
        self.config: dict[str, Any] = check_config(
            image_size=image_size, patch_size=patch_size, in_channels=in_channels,
            num_classes=num_classes, num_blocks=num_blocks, hidden_dim=hidden_dim,
            tokens_mlp_dim=tokens_mlp_dim, channels_mlp_dim=channels_mlp_dim,
            stochastic_depth=stochastic_depth, approximate=approximate, norm=norm,
        )  # fmt: skip
        self.height: int = self.config["image_size"][0]
        self.width: int = self.config["image_size"][1]
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.checkpoint_blocks: bool = bool(checkpoint_blocks)
        tokens = (self.height // patch_size) * (self.width // patch_size)
        self.stem: Linear = Linear(patch_size * patch_size * in_channels, hidden_dim, seed=None)
        self.blocks: list[MixerBlock] = [
            MixerBlock(
                tokens, hidden_dim, tokens_mlp_dim, channels_mlp_dim, approximate,
                stochastic_depth * (i / (num_blocks - 1) if num_blocks > 1 else 1), norm,
            )
            for i in range(num_blocks)
        ]  # fmt: skip
        self.norm: Module = norm(hidden_dim)
        self.head: Linear | None = (
            Linear(hidden_dim, num_classes, zero=True) if num_classes else None
        )
        self.set_normalization(mean, std)
        self.class_names: list[str] | None = check_names(class_names, num_classes)
        self.preparation: str | None = check_preparation(preparation, self.size)
        self.parameters()  # gathers them into one buffer
        if seed is not None:
            self.initialize(seed)
        self.to(np.dtype(dtype))
        self.set_precision(precision)

    # ---- from images to scores ------------------------------------------------------------------

    @advised
    def forward(self, images: Any) -> Tensor:
        """images (B, H, W, in_channels) -> scores (B, num_classes).

        Plain arrays are converted to the model's dtype and device (uint8 is scaled by mean and std)
        and checked (on a GPU fast forms don't look for NaN); of a Tensor only the shape is.
        ValueError: shapes, NaN, infinity; TypeError: other dtypes; MemoryError: what to lower."""
        pooled = self.pooled(images)
        return pooled if self.head is None else self.head(pooled)  # (B, K)

    @in_precision
    def pooled(self, images: Any) -> Tensor:
        """What the head sees: the mean over the tokens, (B, C), in float32 or float64."""
        return self.trunk(images).mean(axis=0)

    @replaceable
    def trunk(self, images: Any) -> Tensor:
        """Images (B, H, W, in) -> (S, B, C)"""
        x = self.stem(self.patches(images))
        for block in self.blocks:
            x = recompute(block, x) if self.checkpoint_blocks else block(x)
        return self.norm(x)

    def patches(self, images: Any) -> Tensor:
        """images (B, H, W, in) -> tokens (S, B, P*P*in): see images.py."""
        return to_tokens(
            images, self.size, self.normalization, self.patch_size, self.activation_dtype,
            self.device,
        )  # fmt: skip

    def set_normalization(self, mean: Any, std: Any) -> None:
        """Record how uint8 images are scaled: a number, or one for each channel."""
        self.normalization: Normalization = Normalization(mean, std, self.in_channels)

    @property
    def size(self) -> tuple[int, int, int]:
        """(H, W, in_channels) of an image."""
        return self.height, self.width, self.in_channels
