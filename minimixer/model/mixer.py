"""MLP-Mixer: the paper's figure 1 as text, with the shape at every arrow.

One block of the paper, with X of S rows (tokens) and C columns (channels), is (equation 1)

    U = X + W2 gelu(W1 LayerNorm(X))          token mixing, along columns: shared by all channels
    Y = U + gelu(LayerNorm(U) W3) W4          channel mixing, along rows: shared by all tokens

with a bias beside each W. In the code W1 and W2 are token_mixing.w1^T and w2, W3 and W4 are
channel_mixing.w1 and w2. The letters, here and everywhere: B images, S = (H / P) (W / P) tokens,
C channels (hidden_dim), D_S and D_C hidden units of the two MLPs, K classes.

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

Where did the transposes go? The paper keeps (B, S, C) and transposes before and after every
token mixing. Here tokens come first: seen as an S x (B*C) matrix, x is ready for token mixing
from the left, W1 x; seen as an (S*B) x C matrix, it is ready for channel mixing from the right,
x W3. Both are views of the same memory. `examples/mixer_by_hand.py` has the paper's layout.

>>> model = Mixer(image_size=28, patch_size=7, in_channels=1, num_classes=10,
...               num_blocks=2, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64)
>>> model(np.zeros((5, 28, 28, 1), dtype="uint8")).shape
(5, 10)

Next: `training/schedules.py`, how the learning rate changes.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.backend import (
    as_dtype,
    check_precision,
    device_of,
    form_of,
    is_half,
    to_numpy,
    use_device_of,
)
from ..engine.checks import check_sizes
from ..engine.dispatch import replaceable
from ..engine.grad_mode import no_grad
from ..engine.tensor import Tensor
from ..nn import functional as F
from ..nn.layers import LayerNorm, Linear, Module, evaluating
from ..nn.more_loss import softmax
from ..nn.parameters import ParameterBuffer, RandomCounter
from ..nn.recompute import recompute
from .block import MixerBlock as MixerBlock
from .block import MixerMLP as MixerMLP
from .images import Normalization, check_shape, normalize, not_normalized, to_tokens
from .variants import check_config, expected_shapes, variant

if TYPE_CHECKING:
    from ..training.report import Summary  # comes later in the reading order

FIRST_SCALE = 2.0**16  # of float16's gradients: too much, if anything; the optimizer lowers it


class Mixer(Module):
    """The network of the paper, for images (B, H, W, in_channels).

    image_size        H = W, or (H, W); both divisible by patch_size
    patch_size        P
    num_blocks        N;  hidden_dim C;  tokens_mlp_dim D_S;  channels_mlp_dim D_C
    stochastic_depth  probability of skipping in the last block, growing from 0 in the first
    approximate       GELU: "tanh", the authors' form, or "none", exact
    mean, std         per channel, in units of the pixel range: uint8 images become
                      (x / 255 - mean) / std; 0.5 and 0.5 are the authors'
    class_names       optional, one for each class
    num_classes       K; 0: no head, and the pooled features (B, C) in place of scores
    seed, dtype       initial weights (None: left at zero); "float32" or "float64"
    precision         "float32", "tf32", "bfloat16" or "float16": see set_precision
    checkpoint_blocks keep only each block's input for backward, and compute the rest again: less
                      memory, more time, the same bits. An attribute that may be changed
    norm              a class of your own in place of LayerNorm, made as norm(channels): (S, B, C)
                      to the same. A checkpoint keeps its name; give it again to load
    preparation       "digit": the images are MNIST's, and a picture of one's own must be made like
                      them first (pictures/digits.py; predict.py does it). None: nothing of the kind
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
        self.config = check_config(
            image_size=image_size, patch_size=patch_size, in_channels=in_channels,
            num_classes=num_classes, num_blocks=num_blocks, hidden_dim=hidden_dim,
            tokens_mlp_dim=tokens_mlp_dim, channels_mlp_dim=channels_mlp_dim,
            stochastic_depth=stochastic_depth, approximate=approximate, norm=norm,
        )  # fmt: skip
        self.height, self.width = self.config["image_size"]
        self.patch_size, self.in_channels = patch_size, in_channels
        self.num_classes, self.checkpoint_blocks = num_classes, bool(checkpoint_blocks)
        tokens = (self.height // patch_size) * (self.width // patch_size)
        self.stem = Linear(patch_size * patch_size * in_channels, hidden_dim, seed=None)
        self.blocks = [
            MixerBlock(
                tokens, hidden_dim, tokens_mlp_dim, channels_mlp_dim, approximate,
                stochastic_depth * (i / (num_blocks - 1) if num_blocks > 1 else 1), norm,
            )
            for i in range(num_blocks)
        ]  # fmt: skip
        self.norm = norm(hidden_dim)
        self.head = Linear(hidden_dim, num_classes, zero=True) if num_classes else None
        self.set_normalization(mean, std)
        if class_names is not None:
            if isinstance(class_names, str) or not hasattr(class_names, "__iter__"):
                raise TypeError(f"class_names must be a list of names, got {class_names!r:.40}")
            class_names = [str(name) for name in class_names]
        self.class_names = class_names
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(f"{len(self.class_names)} class names for {num_classes} classes")
        if preparation not in (None, "digit"):
            raise ValueError(f"preparation must be None or 'digit', got {preparation!r:.40}")
        if preparation and (self.height, self.width, in_channels) != (28, 28, 1):
            raise ValueError("preparation 'digit' is for images of 28 x 28 with 1 channel")
        self.preparation = preparation
        self.parameters()  # gathers them into one buffer
        if seed is not None:
            self.initialize(seed)
        self.to(np.dtype(dtype))
        self.set_precision(precision)

    expected_shapes = staticmethod(expected_shapes)  # whoever loads a file asks before it is made

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> "Mixer":
        """A variant of the paper ("mixer_s32" ... "mixer_h14") with fresh weights; `changes` are
        arguments of Mixer, such as num_classes."""
        return cls(**variant(name, **changes))

    @staticmethod
    def summary_of(
        name: str, batch_size: int = 1, precision: str = "float32", on_gpu: bool = False,
        **changes: Any,
    ) -> "Summary":  # fmt: skip
        """What `summary` says, from the sizes alone: no weights are made. `on_gpu`: of a GPU."""
        from ..training.report import Summary

        check_sizes(batch_size=batch_size)
        itemsize = as_dtype("float32" if precision == "tf32" else precision).itemsize
        kernels = "gpu" if on_gpu else "cpu" if form_of(F.LayerNorm, np.empty(0)) else "reference"
        return Summary(check_config(**variant(name, **changes)), batch_size, itemsize, kernels)

    @classmethod
    def load(cls, path: str | Path, norm: Callable[[int], Module] = LayerNorm) -> "Mixer":
        """The model in a checkpoint, in eval mode, on the CPU. ValueError if it can't be read.
        `norm`: the class again, if the model was made with one.

        "digits" is a model that comes with the package: a run like README's first, on MNIST, with
        99.1% of its test images right. A file of that name goes first; Path("digits") is a file.
        """
        from ..training.checkpoint import load_model

        return load_model(path, cls, **({} if norm is LayerNorm else {"norm": norm}))

    def save(self, path: str | Path) -> None:
        """Write the model, without an optimizer, to a checkpoint: checkpoint.save_checkpoint."""
        from ..training.checkpoint import save_checkpoint

        save_checkpoint(path, self)

    @classmethod
    def from_pretrained(cls, path: str | Path, **changes: Any) -> "Mixer":
        """The model in a file of the authors', of timm's or of our own: weights/pretrained.py."""
        from ..weights.pretrained import load_pretrained

        return load_pretrained(path, **changes)

    @property
    def dtype(self) -> np.dtype:
        return self.stem.weight.dtype

    @property
    def device(self) -> str:
        return self.stem.weight.device

    @property
    def buffer(self) -> ParameterBuffer:
        """Where the Parameters lie, once `parameters()` has gathered them."""
        assert self.stem.weight.buffer is not None
        return self.stem.weight.buffer

    @property
    def random(self) -> RandomCounter:
        """What random draws in training depend on: seed and step."""
        return self.buffer.random

    def set_precision(self, precision: str) -> "Mixer":
        """How activations are stored and multiplied between the images and the pooled features.

        "float32" (of a float64 model: float64); "tf32": products with short mantissas; "bfloat16",
        "float16": activations in two bytes. Weights, their gradients, LayerNorm's statistics, the
        head and the loss stay float32 in all; float16's loss scale starts anew. ValueError if this
        machine lacks it or the model is float64; what depends on the device is checked again when
        the model is used, since it may move. A checkpoint does not record the precision.
        """
        if precision != "tf32" or self.device != "cpu":  # from where it may yet move to a GPU
            self._dtype_in(precision)
        self.parameters()  # gathers them, as after a deep copy
        buffer = self.buffer
        use_device_of(buffer.values)
        self.precision, buffer.low = precision, None
        buffer.precision = "tf32" if precision == "tf32" else None
        buffer.scaled = precision == "float16"
        buffer.loss_scale[0] = FIRST_SCALE if buffer.scaled else 1.0
        buffer.loss_scale[1] = 0.0
        return self

    @property
    def activation_dtype(self) -> np.dtype:
        """What activations are stored in; ValueError if the precision can't be had here."""
        return self._dtype_in(self.precision)

    def _dtype_in(self, precision: str) -> np.dtype:
        values = self.buffer.values
        dtype = check_precision(precision, device_of(values))
        if precision != "float32" and values.dtype != np.float32:
            raise ValueError(
                f"precision {precision} is for float32 models, this one is {values.dtype}: "
                "use set_precision('float32') or .to('float32')"
            )
        return dtype if is_half(dtype) else values.dtype

    # ---- from images to scores ------------------------------------------------------------------

    def forward(self, images: Any) -> Tensor:
        """images (B, H, W, in_channels) -> scores (B, num_classes).

        Plain arrays are converted to the model's dtype and device (uint8 is scaled by mean and std)
        and checked (not those on a GPU already: it would have to wait); a Tensor is taken as it is.
        ValueError: shapes, NaN or infinity; TypeError: other dtypes; MemoryError, with what to
        lower, if there is not enough memory.
        """
        try:
            return self._scores(images)
        except MemoryError as error:
            raise MemoryError(
                f"Mixer: {images.shape} images in {self.precision} need more memory than "
                f"{self.device} has; take fewer at a time, a smaller model, two-byte precision or, "
                f"in training, checkpoint_blocks=True ({error})"
            ) from None

    def _scores(self, images: Any) -> Tensor:
        h = self.trunk(images)  # (S, B, C)
        pooled = h.mean(axis=0)  # (B, C), float32 or float64 again
        if self.buffer.scaled:
            pooled = F.scale_gradient(pooled, self.buffer.loss_scale[:1])
        return pooled if self.head is None else self.head(pooled)  # (B, K)

    @replaceable
    def trunk(self, images: Any, seen: list[Tensor] | None = None) -> Tensor:
        """Images (B, H, W, in) -> patches, stem, blocks, LayerNorm -> (S, B, C). `seen`, a list,
        receives what every block returns."""
        x = self.stem(self.patches(images))
        for block in self.blocks:
            x = recompute(block, x) if self.checkpoint_blocks else block(x)
            if seen is not None:
                seen.append(x)
        return self.norm(x)

    def features(self, images: Any, blocks: Any) -> list[Tensor]:
        """The outputs (B, S, C) of some blocks, counted from 0, or from -1 at the end."""
        for number in (blocks := list(blocks)):
            if number not in range(-len(self.blocks), len(self.blocks)):
                raise IndexError(f"there is no block {number!r:.40}, of {len(self.blocks)}")
        seen: list[Tensor] = []
        self.trunk(images, seen)
        return [seen[number].transpose(1, 0, 2) for number in blocks]

    def patches(self, images: Any) -> Tensor:
        """images (B, H, W, in) -> (S, B, P*P*in): tokens in reading order, each patch flattened in
        (row, column, channel) order."""
        if self.buffer.scaled and isinstance(images, Tensor) and images.requires_grad:
            # the way out of float16, as at the Parameters
            images = F.scale_gradient(images, 1 / self.buffer.loss_scale[:1])
        return to_tokens(
            images, self.size, self.normalization, self.patch_size, self.activation_dtype,
            self.device,
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int, int]:
        """(H, W, in_channels) of an image."""
        return self.height, self.width, self.in_channels

    def convert(self, images: Any) -> Tensor:
        """A plain array as a Tensor of the model's dtype, on its device, checked and normalised."""
        array = self.check_shape(images)
        if isinstance(images, Tensor):
            return images
        half = self.activation_dtype == np.float16  # which ends at 65504
        return Tensor(normalize(array, self.normalization, self.dtype, self.device, half))

    def check_shape(self, images: Any) -> Any:
        """The array of `images`; ValueError unless it is (B, H, W, in_channels) with B > 0."""
        return check_shape(images, self.size)

    def set_normalization(self, mean: Any, std: Any) -> None:
        """Record how uint8 images are scaled: a number, or one for each channel."""
        self.normalization = Normalization(mean, std, self.in_channels)

    @property
    def mean(self) -> np.ndarray:
        return self.normalization.mean

    @property
    def std(self) -> np.ndarray:
        return self.normalization.std

    # ---- using a trained model ------------------------------------------------------------------

    def predict_logits(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> scores (N, K), computed without dropout, a batch at a time. A
        warning, once, if the images are floats that seem not to be normalised."""
        check_sizes(batch_size=batch_size)
        self.check_shape(images)
        if self.head is None:
            raise ValueError("predict: this model has no head (num_classes=0)")
        if not (self.normalization.warned or isinstance(images, Tensor)):
            doubt = not_normalized(images[:batch_size], self.normalization)
            if doubt:
                self.normalization.warned = True
                warnings.warn(doubt, stacklevel=2)
        with no_grad(), evaluating():
            parts = [
                to_numpy(self(images[i : i + batch_size]).data)
                for i in range(0, len(images), batch_size)
            ]
        return np.concatenate(parts)

    def predict_proba(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> class probabilities (N, K), computed without dropout."""
        return softmax(self.predict_logits(images, batch_size))

    def predict(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> the most probable class of each, int64 (N,)."""
        return self.predict_proba(images, batch_size).argmax(axis=1)

    def export(self, path: str | Path, format: str) -> None:
        """Write the weights as the authors' "npz" or as "timm"'s: weights/pretrained.py."""
        from ..weights.pretrained import export

        export(self, path, format)

    def resize(self, image_size: int | tuple[int, int]) -> "Mixer":
        """A new model for larger images: weights/higher_resolution.py."""
        from ..weights.higher_resolution import resize

        return resize(self, image_size)

    def summary(self, batch_size: int = 1) -> "Summary":
        """A table of every layer's output shape, parameters, multiplications and memory."""
        from ..training.report import Summary

        check_sizes(batch_size=batch_size)
        kernels = "cpu" if self.device == "cpu" else "gpu"
        if form_of(F.LayerNorm, self.stem.weight.data) is None:
            kernels = "reference"
        return Summary(self.config, batch_size, self.activation_dtype.itemsize, kernels)
