"""Changes to Mixer that the paper's appendix A.1 reports as not helping, in one table.

    python examples/ablations.py                        the embedded MNIST, some minutes on 2 cores
    python examples/ablations.py --device cuda --epochs 20 --seeds 5
    python examples/ablations.py --data-dir DIR --only mixer untied

Mixer's token mixing sends each channel's S tokens through one MLP that all channels share:

    mixer      (S, B*C)                                    as it is
    untied     a token MLP for every channel               C times its parameters
    grouped    a token MLP for each group of channels      --groups times
    joined     so many neighbouring channels put end to end, (groups*S, B*C/groups): an MLP that
               sees several channels at once               --groups times
    reducing   halfway, a token MLP with S / 4 outputs takes the place of a block's token mixing
    merging    halfway, 2 x 2 tokens become one of twice the channels, by a linear layer

"grouped" lies between the first two; "merging" is other networks' pyramid, "reducing" the
appendix's. All are trained alike, with settings that were chosen for Mixer and a cosine decay after
a warm-up of a tenth. A Mixer is made first, and then some of its modules replaced, by assigning
others: it asks of token mixing and of a whole block no more than (S, B, C) -> (S, B, C), or of a
block another S or C that the next one takes.

The table is written after each model. A run that was stopped keeps those that were finished, and
tells which are left for --only.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minimixer import AdamW, Mixer, Tensor, backend, data, fetch, schedule
from minimixer import functional as F
from minimixer.model.block import MixerBlock, MixerMLP
from minimixer.nn.layers import LayerNorm, Linear, Module, lecun_normal
from minimixer.nn.parameters import Parameter
from minimixer.training.metrics import evaluate
from minimixer.training.names import printable
from support.options import Parser, run_script
from support.run_directory import write_rows
from support.settings import SIZES, Between, Setting, check_settings
from support.stopping import stop_signals
from train_mnist import SETTINGS as RECIPE

# Mixer's own are those of train_mnist.py on the CPU; for merging, image / patch_size must be even.
MNIST = {name: setting.but(on_gpu=None) for name, setting in RECIPE.items()}
SETTINGS = {
    **{name: MNIST[name] for name in SIZES},
    "groups": Setting(4, Between(1), "groups of channels; for joined: channels in each"),
    "epochs": MNIST["epochs"].but(default=2),
    **{name: MNIST[name] for name in ("batch_size", "lr", "weight_decay", "max_shift")},
    "seeds": Setting(3, Between(1), "runs of each model: initial weights, order of the images, "
                     "shifts"),
    "limit_train": MNIST["limit_train"],
}  # fmt: skip

# ---- token mixing otherwise ---------------------------------------------------------------------


class GroupedMLP(Module):
    """Token mixing by one MLP for each of `groups` groups of neighbouring channels.

    w1, w2 (groups, S, D_S); b1 (groups * D_S,), b2 (groups * S,). With groups = C none is shared.
    """

    def __init__(self, tokens: int, channels: int, hidden: int, groups: int, approximate: str):
        self.approximate = approximate
        self.vectors = channels // groups  # that an image has for each weight
        shape = groups, tokens, hidden
        self.w1 = Parameter(np.zeros(shape, dtype=np.float32))
        self.b1 = Parameter(np.zeros(groups * hidden, dtype=np.float32))
        self.w2 = Parameter(np.zeros(shape, dtype=np.float32))
        self.b2 = Parameter(np.zeros(groups * tokens, dtype=np.float32))

    def draw_weights(self, seed: int, layer: int) -> None:
        shape = _, tokens, hidden = self.w1.shape
        self.w1.data = lecun_normal(shape, tokens, seed, layer)
        self.w2.data = lecun_normal(shape, hidden, seed, layer, number=1)
        for bias in (self.b1, self.b2):
            bias.data = np.zeros(bias.shape, dtype=np.float32)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        groups, tokens, _ = self.w1.shape
        batch, channels = x.shape[1:]
        x = x.reshape(tokens, batch, groups, channels // groups).transpose(2, 0, 1, 3)
        x = x.reshape(groups, tokens, batch * channels // groups)
        u = self.w1.transpose(0, 2, 1) @ x + self.b1.reshape(groups, -1, 1)  # (groups, D_S, n)
        y = self.w2 @ F.gelu(u, self.approximate) + self.b2.reshape(groups, -1, 1)
        y = y.reshape(groups, tokens, batch, channels // groups).transpose(1, 2, 0, 3)
        return y.reshape(tokens, batch, channels)


class JoinedMLP(Module):
    """Token mixing of `groups` neighbouring channels at once, their tokens put end to end:
    mlp.w1, mlp.w2 (groups * S, D_S)."""

    def __init__(self, tokens: int, channels: int, hidden: int, groups: int, approximate: str):
        self.groups, self.vectors = groups, channels // groups  # see GroupedMLP
        self.mlp = MixerMLP(groups * tokens, hidden, 0, approximate)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S, B, C)"""
        tokens, batch, channels = x.shape
        x = x.reshape(tokens, batch, channels // self.groups, self.groups).transpose(3, 0, 1, 2)
        y = self.mlp(x.reshape(self.groups * tokens, batch, -1))
        y = y.reshape(self.groups, tokens, batch, -1).transpose(1, 2, 3, 0)
        return y.reshape(tokens, batch, channels)


# ---- pyramids -----------------------------------------------------------------------------------


class ReducingBlock(Module):
    """A Mixer block whose token MLP gives S' < S tokens: hidden (S, D_S), reduce (D_S, S').
    There is nothing to add them to: of the two skip connections the second remains."""

    def __init__(
        self, tokens: int, reduced: int, channels: int, tokens_mlp_dim: int,
        channels_mlp_dim: int, approximate: str,
    ):  # fmt: skip
        self.approximate, self.vectors = approximate, channels
        self.norm1 = LayerNorm(channels)
        self.hidden = Linear(tokens, tokens_mlp_dim)
        self.reduce = Linear(tokens_mlp_dim, reduced)
        self.norm2 = LayerNorm(channels)
        self.channel_mixing = MixerMLP(channels, channels_mlp_dim, -1, approximate)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S', B, C)"""
        h = self.norm1(x).transpose(1, 2, 0)  # (B, C, S): the paper's transpose, for once
        h = F.gelu(self.hidden(h), self.approximate)
        x = self.reduce(h).transpose(2, 0, 1)
        return x + self.channel_mixing(self.norm2(x))


class MergingBlock(Module):
    """LayerNorm, then 2 x 2 tokens side by side through one linear layer, 4 C -> 2 C channels."""

    def __init__(self, rows: int, columns: int, channels: int):
        if rows % 2 or columns % 2:
            raise ValueError(
                f"{rows} x {columns} tokens can't be merged 2 x 2: choose --patch-size"
            )
        self.grid = rows, columns
        self.norm = LayerNorm(channels)
        self.merge = Linear(4 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (S / 4, B, 2 C)"""
        h = self.norm(x)
        rows, columns = self.grid
        h = h.reshape(rows // 2, 2, columns // 2, 2, *h.shape[1:]).transpose(0, 2, 4, 1, 3, 5)
        return self.merge(h.reshape(rows * columns // 4, h.shape[2], -1))


# ---- the models ---------------------------------------------------------------------------------


def with_token_mixing(kind: Callable[..., Any], groups: Callable) -> Callable[..., None]:
    """Replaces every block's token mixing by a `kind`."""

    def change(model: Mixer, options: argparse.Namespace) -> None:
        c, count = model.config, groups(options)
        if c["hidden_dim"] % count:
            raise ValueError(f"{c['hidden_dim']} channels can't be cut into {count} equal groups")
        for block in model.blocks:
            tokens = len(block.token_mixing.w1)
            sizes = tokens, c["hidden_dim"], c["tokens_mlp_dim"]
            block.token_mixing = kind(*sizes, count, c["approximate"])

    return change


def reducing(model: Any, options: argparse.Namespace) -> None:
    c, half = model.config, len(model.blocks) // 2
    tokens = len(model.blocks[0].token_mixing.w1)
    sizes = c["hidden_dim"], c["tokens_mlp_dim"], c["channels_mlp_dim"], c["approximate"]
    model.blocks[half] = ReducingBlock(tokens, tokens // 4, *sizes)
    for i in range(half + 1, len(model.blocks)):
        model.blocks[i] = MixerBlock(tokens // 4, *sizes, stochastic_depth=0.0)


def merging(model: Any, options: argparse.Namespace) -> None:
    c, half = model.config, len(model.blocks) // 2
    rows, columns = (side // c["patch_size"] for side in c["image_size"])
    wide = 2 * c["hidden_dim"]
    sizes = c["tokens_mlp_dim"], 2 * c["channels_mlp_dim"], c["approximate"]
    for i in range(half, len(model.blocks)):
        model.blocks[i] = MixerBlock(rows * columns // 4, wide, *sizes, stochastic_depth=0.0)
    model.blocks.insert(half, MergingBlock(rows, columns, c["hidden_dim"]))
    model.norm, model.head = LayerNorm(wide), Linear(wide, c["num_classes"], zero=True)


VARIANTS: dict[str, Callable[..., None]] = {
    "mixer": lambda model, options: None,
    "untied": with_token_mixing(GroupedMLP, lambda options: options.hidden_dim),
    "grouped": with_token_mixing(GroupedMLP, lambda options: options.groups),
    "joined": with_token_mixing(JoinedMLP, lambda options: options.groups),
    "reducing": reducing,
    "merging": merging,
}


def make(name: str, options: argparse.Namespace, shape: tuple, classes: int, seed: int) -> Mixer:
    model = Mixer(
        image_size=shape[:2], in_channels=shape[2], num_classes=classes,
        seed=None, **{name: getattr(options, name) for name in SIZES},
    )  # fmt: skip
    VARIANTS[name](model, options)
    model.parameters()  # of the new parts too, in one buffer
    model.initialize(seed)
    model.to(options.device)
    return model


def macs(model: Any) -> int:
    """Multiply-accumulates for one image: each weight's size times the vectors it is used for."""
    tokens = (model.height // model.patch_size) * (model.width // model.patch_size)
    total = tokens * model.stem.weight.size + model.head.weight.size
    for block in model.blocks:
        if isinstance(block, MergingBlock):
            tokens //= 4
            total += tokens * block.merge.weight.size
            continue
        if isinstance(block, ReducingBlock):
            tokens = block.reduce.weight.shape[1]
            total += block.vectors * (block.hidden.weight.size + block.reduce.weight.size)
        else:
            mixing = block.token_mixing
            vectors = getattr(mixing, "vectors", len(block.norm1.weight))
            total += vectors * sum(p.size for p in mixing.parameters() if p.ndim > 1)
        total += tokens * 2 * block.channel_mixing.w1.size
    return total


# ---- training -----------------------------------------------------------------------------------


def train(model: Mixer, batches: data.Batches, options: argparse.Namespace, label: str) -> float:
    """Seconds that training took. ValueError if the loss is not finite."""
    optimizer = AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    total_steps = options.epochs * len(batches)

    def train_step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    started, step = time.perf_counter(), 0
    with tqdm(total=total_steps, desc=label, unit="step", leave=False, dynamic_ncols=True) as bar:
        for epoch in range(options.epochs):
            for images, labels in batches.epoch(epoch):
                optimizer.lr_factor = schedule(step, total_steps, total_steps // 10)
                fetched = fetch(train_step(images, labels))
                step += 1
                bar.update()
            (loss,) = fetched.results()  # waits for a GPU, once an epoch
            if not np.isfinite(loss):
                raise ValueError(f"{label}: the loss became {loss} in epoch {epoch + 1}")
    return time.perf_counter() - started


def main() -> int:
    options = make_parser().parse_args()
    check_settings(options, SETTINGS)
    if len(set(options.only)) < len(options.only):
        raise ValueError("--only: each model once")
    options.device = backend.check_device(options.device)
    load = (lambda: data.load_directory(options.data_dir)) if options.data_dir else data.load_mnist
    arrays = load()
    out, rows = choose_out(options), []  # type: ignore[var-annotated]
    try:
        with stop_signals():
            compare(options, arrays, out, rows)
    except KeyboardInterrupt:
        names = list(options.only)
        kept = f"{printable(out)} has {' '.join(names[: len(rows)])}" if rows else "nothing is kept"
        again = ", with another --out" if rows and options.out else ""
        print(f"\nablations: stopped; {kept}; for the others: --only "
              f"{' '.join(names[len(rows) :])}{again}", file=sys.stderr)  # fmt: skip
        return 130
    finally:
        if not rows and not options.overwrite:
            out.unlink(missing_ok=True)  # its name was taken, and nothing came
    print(f"{options.epochs} epochs, {options.seeds} seeds on {options.device}; "
          f"wrote {printable(out)}")  # fmt: skip
    return 0


def choose_out(options: argparse.Namespace) -> Path:
    """The file for the table, made empty at once: of two runs each has its own. Without --out a
    name that is free; with it, no other table is replaced unless --overwrite says so."""
    first = Path(options.out or "runs/ablations.csv")
    if first.is_dir():
        raise ValueError(f"--out {printable(first)} is a directory; name a file in it")
    first.parent.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        return first
    for number in itertools.count(1):
        out = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        try:
            open(out, "xb").close()
        except FileExistsError:
            if options.out:
                raise ValueError(f"{printable(out)} is there already; --overwrite replaces it, "
                                 "another --out keeps it") from None  # fmt: skip
            continue
        if number > 1:
            print(f"{printable(first)} is there already; this table goes to {printable(out)}")
        break
    return out


def compare(
    options: argparse.Namespace, arrays: data.DataSet, out: Path, rows: list[dict[str, Any]]
) -> None:
    """Train all models, and write and print a row for each."""
    train_images, train_labels, test_images, test_labels = arrays
    if options.limit_train:
        train_images = train_images[: options.limit_train]
        train_labels = train_labels[: options.limit_train]
    classes = data.num_classes(np.concatenate([train_labels, test_labels]))
    print(f"{'model':10} {'parameters':>12} {'MACs':>14} {'top-1':>8} {'+-':>6} {'seconds':>8}")
    for name in options.only:
        top1, seconds = [], 0.0
        for seed in range(options.seeds):
            model = make(name, options, train_images.shape[1:], classes, seed)
            batches = data.Batches(
                train_images, train_labels, options.batch_size, seed, options.max_shift
            )
            seconds += train(model, batches, options, f"{name}, seed {seed}")
            top1.append(evaluate(model, test_images, test_labels).accuracy)
        rows.append({
            "model": name, "parameters": model.num_parameters(), "macs": macs(model),
            "top1_mean": np.mean(top1),
            "top1_deviation": np.std(top1, ddof=1) if top1[1:] else "",  # of one: unknown
            "seconds": seconds / options.seeds, "top1": " ".join(f"{value:.4f}" for value in top1),
        })  # fmt: skip
        print_row(rows[-1])
        out.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed
        write_rows(out, rows)


def print_row(row: dict[str, Any]) -> None:
    deviation = row["top1_deviation"]
    print(
        f"{row['model']:10} {row['parameters']:12,} {row['macs']:14,} {row['top1_mean']:8.2%} "
        f"{'-' if deviation == '' else format(deviation, '.2%'):>6} {row['seconds']:8.1f}",
        flush=True,
    )


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="models")
    parser.add_device()
    parser.add_argument("--data-dir", default="", help="directory of IDX files (default: MNIST)")
    parser.add_argument(
        "--out", help="the table (default: runs/ablations.csv, or with a number if that is there)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the table of before")
    parser.add_settings(SETTINGS)
    return parser


if __name__ == "__main__":
    run_script(main, "ablations")
