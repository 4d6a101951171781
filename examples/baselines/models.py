"""What the paper compares Mixer with, from the same engine: ViT, ResNet, and the two combined.

ViT (Dosovitskiy et al. 2021) differs from Mixer in what mixes tokens, and in that a token knows
where it is:

    images                              --> (B, H, W, in)
    cut into P x P patches              --> (S, B, P*P*in)
    stem: per-patch linear projection   --> (S, B, C)
    class token in front (pool="token") --> (S + 1, B, C)
    + learned positions                 --> the same
        +- encoder block, num_blocks times ------------------------------------------------+
        |  LayerNorm, attention (num_heads), + skip                                        |
        |  LayerNorm, MLP along channels (Mixer's own), + skip                             |
        +----------------------------------------------------------------------------------+
    LayerNorm, class token or mean      --> (B, C)
    head: linear                        --> (B, K)

ResNet is BiT's (Kolesnikov et al. 2020): pre-activation bottlenecks, GroupNorm in place of
BatchNorm, every convolution's weight standardised. For "imagenet" and width 64:

    images                              --> (B, H, W, in)
    root: 7 x 7, stride 2; 3 x 3 max pool, stride 2 ("small": 3 x 3, stride 1, no pool)
    stage i = 0, 1, ...: blocks         --> (B, H/4/2^i, W/4/2^i, 4 * 64 * 2^i)
    GroupNorm, ReLU, mean over pixels   --> (B, channels)
    head: linear                        --> (B, K)

Hybrid is a ViT that cuts its patches from the feature map of such a ResNet.

Weights are drawn as Mixer's are (LeCun normal, the head zero) and models called as Mixer is. They
compute in float32 or float64; two-byte precisions are Mixer's alone.

>>> model = ViT(image_size=28, patch_size=7, in_channels=1, num_classes=10,
...             num_blocks=2, hidden_dim=32, mlp_dim=64, num_heads=4)
>>> model(np.zeros((5, 28, 28, 1), dtype="uint8")).shape
(5, 10)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baselines.layers import Body, EncoderBlock, check_body
from minimixer import Mixer, Tensor, concatenate, ops
from minimixer.backend import FLOAT_DTYPES, Array, as_dtype, device_of, namespace, to_device
from minimixer.model.images import Normalization, cut_patches
from minimixer.model.inputs import check_shape, normalize
from minimixer.nn.buffer import ParameterBuffer
from minimixer.nn.draws import RandomCounter
from minimixer.nn.layers import LayerNorm, Linear, Module, check_sizes, lecun_normal
from minimixer.nn.parameters import Parameter
from minimixer.training.checkpoint import load_model

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# ---- what all of them share ---------------------------------------------------------------------


class Classifier(Module):
    """From images to features, which a subclass computes, to scores.

    Subclasses set what is named below and define `features` and `macs`. num_classes 0: no head, and
    the features in place of scores. `config` holds the arguments that say what the model is.
    """

    config: dict[str, Any]
    head: Linear | None
    first_weight: Any  # a property: any Parameter will do to tell where the model is

    def start(self, mean: Any, std: Any, seed: int | None, dtype: str) -> None:
        """The end of every constructor."""
        self.height, self.width = self.config["image_size"]
        self.in_channels, self.num_classes = self.config["in_channels"], self.config["num_classes"]
        self.normalization = Normalization(mean, std, self.in_channels)
        self.parameters()  # gathers them into one buffer
        if seed is not None:
            self.initialize(seed)
        self.to(as_dtype(dtype))

    def features(self, x: Tensor) -> Tensor:
        """x (B, H, W, in) -> (B, channels)."""
        raise TypeError(f"{type(self).__name__} has no features")

    def macs(self) -> int:
        """Multiply-accumulates of the matrix products for one image, from the sizes alone."""
        raise TypeError(f"{type(self).__name__} has no macs")

    def forward(self, images: Any) -> Tensor:
        """images (B, H, W, in_channels) -> scores (B, num_classes).

        As Mixer's: plain arrays are converted to the model's dtype and device (uint8 is scaled by
        mean and std) and checked (not those on a GPU already); a Tensor is taken as it is.
        ValueError: shapes, NaN or infinity; TypeError: other dtypes.
        """
        pooled = self.features(self.convert(images))
        return pooled if self.head is None else self.head(pooled)

    def convert(self, images: Any) -> Tensor:
        """A plain array as a Tensor of the model's dtype, on its device, checked and normalised."""
        self.check_shape(images)
        if isinstance(images, Tensor):
            return images
        if device_of(images) != "cpu" and images.dtype in FLOAT_DTYPES:  # a look would wait for it
            return Tensor(to_device(images, self.device).astype(self.dtype, copy=False))
        try:
            return Tensor(normalize(images, self.normalization, self.dtype, self.device))
        except (ValueError, TypeError) as error:
            raise self._named(error) from None

    def check_shape(self, images: Any) -> Array:
        try:
            return check_shape(images, (self.height, self.width, self.in_channels))
        except ValueError as error:
            raise self._named(error) from None

    def _named(self, error: Exception) -> Exception:
        return type(error)(str(error).replace("Mixer", type(self).__name__))

    @property
    def buffer(self) -> ParameterBuffer:
        return self.first_weight.buffer

    @property
    def random(self) -> RandomCounter:
        return self.buffer.random

    @property
    def device(self) -> str:
        return self.buffer.device

    @property
    def dtype(self) -> np.dtype:
        return self.buffer.dtype

    predict_logits = Mixer.predict_logits  # they ask for no more than the above
    predict_proba = Mixer.predict_proba
    predict = Mixer.predict
    mean, std, save = Mixer.mean, Mixer.std, Mixer.save

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """The model in a checkpoint, in eval mode, on the CPU. ValueError if it can't be read."""
        return load_model(path, kind=cls)


def head_shapes(channels: int, num_classes: int) -> Shapes:
    if num_classes:
        yield from {"head.weight": (channels, num_classes), "head.bias": (num_classes,)}.items()


def check_image(config: dict[str, Any], *sizes: str) -> dict[str, Any]:
    """The config with image_size as (H, W). ValueError unless those and `sizes` are positive,
    TypeError if one is missing."""
    sizes = *sizes, "in_channels"
    missing = {"image_size", "num_classes", *sizes} - config.keys()
    if missing:
        raise TypeError(f"the configuration lacks {', '.join(sorted(missing))}")
    size = config["image_size"]
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    height, width = size if pair else (size, size)
    check_sizes(image_height=height, image_width=width, **{name: config[name] for name in sizes})
    if config["num_classes"] != 0 or isinstance(config["num_classes"], bool):
        check_sizes(num_classes=config["num_classes"])
    config = config | {name: int(config[name]) for name in (*sizes, "num_classes")}
    return config | {"image_size": (int(height), int(width))}  # all Python's, as JSON has them


VIT_SIZES = "patch_size", "num_blocks", "hidden_dim", "mlp_dim", "num_heads"

# ---- ViT ----------------------------------------------------------------------------------------


class ViT(Classifier):
    """A Vision Transformer for images (B, H, W, in_channels).

    image_size    H = W, or (H, W)
    patch_size    P, a divisor of both (of the height and width of the stem's feature map)
    num_blocks    encoder blocks;  hidden_dim C;  mlp_dim  hidden units;  num_heads  a divisor of C
    pool          "token": the class token is what the head reads; "mean": the mean of all tokens
    stem          None, or a Module from images (B, H, W, in) to a feature map, which has `out_size`
                  (height, width), `out_channels` and `macs()`: Hybrid
    approximate   GELU: "tanh", or "none", exact
    mean, std, seed, dtype: as of Mixer

    ValueError for sizes that are not positive or do not fit together. Positions start as normal
    with deviation 0.02, the class token at zero. AdamW decays the positions, a matrix, as it does
    weights; to leave them out give it groups.
    """

    def __init__(
        self, image_size: int | tuple[int, int], patch_size: int, in_channels: int,
        num_classes: int, num_blocks: int, hidden_dim: int, mlp_dim: int, num_heads: int,
        pool: str = "token", seed: int | None = 0, mean: Any = 0.5, std: Any = 0.5,
        stem: Any = None, dtype: str = "float32", approximate: str = "tanh",
    ):  # fmt: skip
        self.config = check_image(
            {
                "image_size": image_size, "patch_size": patch_size, "in_channels": in_channels,
                "num_classes": num_classes, "num_blocks": num_blocks, "hidden_dim": hidden_dim,
                "mlp_dim": mlp_dim, "num_heads": num_heads, "pool": pool,
                "approximate": approximate,
            },
            *VIT_SIZES,
        )  # fmt: skip
        height, width = self.config["image_size"] if stem is None else stem.out_size
        if height % patch_size or width % patch_size:
            what = "image" if stem is None else "feature map"
            size = f"{patch_size} x {patch_size}"
            raise ValueError(f"a {height} x {width} {what} can't be cut into {size} patches")
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} is not a multiple of {num_heads} heads")
        if pool not in ("token", "mean") or approximate not in ("tanh", "none"):
            given = f"got {pool!r} and {approximate!r}"
            raise ValueError(f"pool must be 'token' or 'mean', GELU 'tanh' or 'none', {given}")
        self.patch_size, self.pool, self.body = patch_size, pool, stem
        self.patches = (height // patch_size) * (width // patch_size)
        self.tokens = self.patches + (pool == "token")
        pixels = patch_size**2 * (in_channels if stem is None else stem.out_channels)
        self.stem = Linear(pixels, hidden_dim, seed=None)
        if pool == "token":
            self.class_token = Parameter(np.zeros(hidden_dim, dtype=np.float32))
        self.positions = Parameter(np.zeros((self.tokens, hidden_dim), dtype=np.float32))
        self.blocks = [
            EncoderBlock(hidden_dim, num_heads, mlp_dim, approximate) for _ in range(num_blocks)
        ]
        self.norm = LayerNorm(hidden_dim)
        self.head = Linear(hidden_dim, num_classes, zero=True) if num_classes else None
        self.start(mean, std, seed, dtype)

    def draw_weights(self, seed: int, layer: int) -> None:
        self.positions.data = lecun_normal(self.positions.shape, 50**2, seed, layer)  # 1 / 50
        if self.pool == "token":
            self.class_token.data = np.zeros(self.class_token.shape, dtype=np.float32)

    @property
    def first_weight(self) -> Parameter:
        return self.stem.weight

    def features(self, x: Tensor) -> Tensor:
        if self.body is not None:
            x = self.body(x)
        x = self.stem(cut_patches(x, self.patch_size))  # (S, B, C)
        if self.pool == "token":
            once_each = namespace(x.data).ones((1, x.shape[1], 1), dtype=x.dtype)
            x = concatenate([ops.multiply(self.class_token, once_each), x])
        x = x + self.positions.reshape(self.tokens, 1, -1)
        for block in self.blocks:
            x = block(x)
        h = self.norm(x)  # (S, B, C)
        return h[0] if self.pool == "token" else h.mean(axis=0)

    def macs(self) -> int:
        """Attention's two products take 2 S^2 C a block: quadratic, where Mixer's are linear."""
        channels, mlp_dim = self.config["hidden_dim"], self.config["mlp_dim"]
        linear = 4 * channels * channels + 2 * channels * mlp_dim
        block = self.tokens * linear + 2 * self.tokens**2 * channels
        total = self.patches * self.stem.weight.size + len(self.blocks) * block
        total += 0 if self.body is None else self.body.macs()
        return total + channels * self.num_classes

    @staticmethod
    def expected_shapes(config: dict[str, Any]) -> Shapes:
        config = check_image(config, *VIT_SIZES)
        return vit_shapes(config, config["image_size"], config["in_channels"])


def vit_shapes(config: dict[str, Any], size: tuple[int, int], channels: int) -> Shapes:
    """Those of a ViT on feature maps of this size."""
    c, d, patch = config["hidden_dim"], config["mlp_dim"], config["patch_size"]
    with_token = config.get("pool", "token") == "token"
    yield from {"stem.weight": (patch**2 * channels, c), "stem.bias": (c,)}.items()
    if with_token:
        yield "class_token", (c,)
    yield "positions", ((size[0] // patch) * (size[1] // patch) + with_token, c)
    block = {"norm1.weight": (c,), "norm1.bias": (c,), "norm2.weight": (c,), "norm2.bias": (c,),
             "attention.qkv.weight": (c, 3 * c), "attention.qkv.bias": (3 * c,),
             "attention.out.weight": (c, c), "attention.out.bias": (c,),
             "mlp.w1": (c, d), "mlp.b1": (d,), "mlp.w2": (d, c), "mlp.b2": (c,)}  # fmt: skip
    for i in range(config["num_blocks"]):
        yield from ((f"blocks.{i}.{name}", shape) for name, shape in block.items())
    yield from {"norm.weight": (c,), "norm.bias": (c,)}.items()
    yield from head_shapes(c, config["num_classes"])


# ---- ResNet -------------------------------------------------------------------------------------


class ResNet(Classifier):
    """BiT's ResNet for images (B, H, W, in_channels).

    image_size    H = W, or (H, W)
    block_counts  bottlenecks in each stage: (3, 4, 6, 3) is ResNet-50
    width         inner channels of the first stage; 64 is BiT's x1
    stem          "imagenet": 7 x 7 with stride 2, 3 x 3 max pool with stride 2; "small": 3 x 3
    groups        of GroupNorm; fewer, a divisor of it, where `width` is small
    mean, std, seed, dtype: as of Mixer

    ValueError for sizes that are not positive, or another stem.
    """

    def __init__(
        self, image_size: int | tuple[int, int], in_channels: int, num_classes: int,
        block_counts: Sequence[int] = (3, 4, 6, 3), width: int = 64, stem: str = "imagenet",
        groups: int = 32, seed: int | None = 0, mean: Any = 0.5, std: Any = 0.5,
        dtype: str = "float32",
    ):  # fmt: skip
        self.config = check_image(
            {"image_size": image_size, "in_channels": in_channels, "num_classes": num_classes}
        )
        size = self.config["image_size"]
        self.body = Body(size, in_channels, block_counts, width, stem, groups)
        self.config |= {
            "block_counts": tuple(map(int, block_counts)), "width": int(width), "stem": stem,
            "groups": int(groups),
        }  # fmt: skip
        channels = self.body.out_channels
        self.head = Linear(channels, num_classes, zero=True) if num_classes else None
        self.start(mean, std, seed, dtype)

    @property
    def first_weight(self) -> Parameter:
        return self.body.root.weight

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean(axis=(1, 2))

    def macs(self) -> int:
        return self.body.macs() + self.body.out_channels * self.num_classes

    @staticmethod
    def expected_shapes(config: dict[str, Any]) -> Shapes:
        config = check_image(config)
        yield from body_shapes(config)
        yield from head_shapes(out_channels(config), config["num_classes"])


def body_shapes(config: dict[str, Any]) -> Shapes:
    missing = {"block_counts", "width", "stem", "groups"} - config.keys()
    if missing:
        raise TypeError(f"the configuration lacks {', '.join(sorted(missing))}")
    check_body(*(config[name] for name in ("block_counts", "width", "stem", "groups")))
    yield from ((f"body.{name}", shape) for name, shape in Body.expected_shapes(config))


def out_channels(config: dict[str, Any]) -> int:
    return 4 * config["width"] * 2 ** (len(config["block_counts"]) - 1)


class Hybrid(ViT):
    """A ViT on the feature map of a ResNet: R50+ViT-B/16 has block_counts (3, 4, 9), patch_size 1.

    block_counts, width, stem and groups are ResNet's, all else ViT's. Small images:
    stem "small" and (1, 1) make 14 x 14 tokens of 28 x 28 pixels. The original's ResNet
    normalises after its convolutions, this one before, as in BiT.
    """

    def __init__(
        self, image_size: int | tuple[int, int], in_channels: int, num_classes: int,
        num_blocks: int, hidden_dim: int, mlp_dim: int, num_heads: int,
        block_counts: Sequence[int] = (3, 4, 9), width: int = 64, stem: str = "imagenet",
        groups: int = 32, patch_size: int = 1, pool: str = "token", seed: int | None = 0,
        mean: Any = 0.5, std: Any = 0.5, dtype: str = "float32", approximate: str = "tanh",
    ):  # fmt: skip
        config = {"image_size": image_size, "in_channels": in_channels, "num_classes": num_classes}
        size = check_image(config)["image_size"]
        body = Body(size, in_channels, block_counts, width, stem, groups)
        super().__init__(
            image_size, patch_size, in_channels, num_classes, num_blocks, hidden_dim, mlp_dim,
            num_heads, pool, seed, mean, std, body, dtype, approximate,
        )  # fmt: skip
        self.config |= {
            "block_counts": tuple(map(int, block_counts)), "width": int(width), "stem": stem,
            "groups": int(groups),
        }  # fmt: skip

    @staticmethod
    def expected_shapes(config: dict[str, Any]) -> Shapes:
        config = check_image(config, *VIT_SIZES)
        yield from body_shapes(config)
        halved = len(config["block_counts"]) - 1 + (2 if config["stem"] == "imagenet" else 0)
        height, width = (-(-side // 2**halved) for side in config["image_size"])
        yield from vit_shapes(config, (height, width), out_channels(config))
