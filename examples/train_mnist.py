"""Train a Mixer on MNIST, or on any data set of IDX files.

    python examples/train_mnist.py                      the embedded MNIST, a few minutes on 2 cores
    python examples/train_mnist.py --device cuda        the same on a GPU
    python examples/train_mnist.py --data-dir DIR       Fashion-MNIST, KMNIST, your own
    mpirun -n 2 python examples/train_mnist.py          two processes; with --device cuda, GPUs

Ctrl-C saves a checkpoint; --resume goes on from it, to the same weights, bit for bit. A run that is
over is trained on by a new one, with a schedule of its own: --weights runs/mnist/checkpoint.npz.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import zlib

import numpy as np

from minimixer import AdamW, Mixer, data, kernels, parallel, schedule
from minimixer import functional as F
from minimixer.training.metrics import correct, evaluate
from minimixer.training.names import command, printable
from minimixer.training.report import save_pictures
from minimixer.weights.remake import remake
from support.options import Parser, check_choice, check_range, dashes, parse, run_script
from support.run import Run, on_each_rank, parts, set_precision
from support.stopping import say

# Chosen on 5,000 held-out training images; the test set had no say.
SETTINGS = {
    "patch_size": (7, "P: side of a patch, a divisor of the image's height and width"),
    "num_blocks": (4, "N: Mixer blocks"),
    "hidden_dim": (96, "C: channels"),
    "tokens_mlp_dim": (32, "D_S: hidden units of the token-mixing MLP"),
    "channels_mlp_dim": (256, "D_C: hidden units of the channel-mixing MLP"),
    "epochs": (6, "passes over the training images"),
    "batch_size": (128, "images a step"),
    "lr": (4e-3, "learning rate at its highest"),
    "weight_decay": (0.05, "AdamW's decay, on matrices only"),
    "schedule": ("cosine", "learning rate after the warm-up: cosine, linear or constant"),
    "warmup": (0.1, "share of the steps in which the learning rate rises"),
    "stochastic_depth": (0.0, "probability of skipping the last block, less for those before it"),
    "max_shift": (1, "each image moves by up to so many pixels, anew in each epoch"),
    "accumulate": (1, "cut each batch into so many parts, for their gradients' sum: less memory"),
    "clip": (0.0, "largest gradient norm; 0: no clipping"),
    "precision": ("float32", "float32, tf32 (a GPU's), bfloat16 or float16"),
    "weights": ("", "a checkpoint to start from, whose sizes the model takes"),
    "seed": (0, "initial weights, order of the images, shifts"),
    "limit_train": (0, "train on the first so many images only; 0: all"),
    "data_dir": (
        "",
        "directory of IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each plain or .gz; default: the "
        "embedded MNIST",
    ),
}
# On a GPU, where a step takes half a millisecond: chosen in the same way.
GPU_SETTINGS = {
    "patch_size": 4, "hidden_dim": 96, "tokens_mlp_dim": 64, "channels_mlp_dim": 256, "epochs": 40,
    "stochastic_depth": 0.1, "max_shift": 2, "precision": "bfloat16",
}  # fmt: skip


COLUMNS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
           "images_per_second")  # fmt: skip
SIZES = ("patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
OUT = "runs/mnist"


def main() -> int:
    with parallel.start() as world:  # of one process, unless mpirun started several
        options, given = parse(make_parser)
        with Run(options, given, SETTINGS, COLUMNS, OUT, world) as run:
            return train(run)


def train(run: Run) -> int:
    options, given, world = run.options, run.given, run.world
    if not options.resume and options.device != "cpu":
        for name in GPU_SETTINGS.keys() - given:
            setattr(options, name, GPU_SETTINGS[name])
    check_settings(options)
    device = world.use(options.device)
    world.check_batch_size(options.batch_size)

    # ---- data, model, optimizer
    source = options.data_dir or "the embedded MNIST"
    load = (lambda: data.load_directory(source)) if options.data_dir else data.load_mnist
    train_images, train_labels, test_images, test_labels = load()
    if options.limit_train:
        train_images = train_images[: options.limit_train]
        train_labels = train_labels[: options.limit_train]
    classes = data.num_classes(np.concatenate([train_labels, test_labels]))
    fingerprint = 0
    for array in (train_images, train_labels, test_images, test_labels):
        fingerprint = zlib.crc32(array.tobytes(), fingerprint)

    model = make_model(run, train_images, classes).to(device)
    set_precision(model, options, given)
    optimizer = AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    batches = data.Batches(
        train_images, train_labels, options.batch_size, options.seed, options.max_shift
    )
    total_steps = options.epochs * len(batches)
    warmup_steps = int(options.warmup * total_steps)
    run.start(model, optimizer, total_steps, len(batches), fingerprint)

    say(
        f"{len(train_images):,} training images of {classes} classes from {printable(source)}; "
        f"Mixer with {model.num_parameters():,} parameters on {device}; {kernels.status()}"
    )

    # ---- training
    def train_step(images, labels, *, count, first):
        """One step on a batch of `count` images, of which these are the ones from `first` on, in
        --accumulate parts: (their share of the mean loss, how many were right)."""
        total, right = 0.0, 0
        for part in parts(len(images), options.accumulate):
            model.random.start_at(first + part.start)
            logits = model(images[part])
            loss = F.cross_entropy(logits, labels[part], reduction="sum") / count
            loss.backward()
            total += loss.detach()
            right += correct(logits.data, labels[part])
        world.sum_gradients(model)  # over all processes
        if options.clip:
            optimizer.clip_grad_norm(options.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total, right

    def validate():
        """Every process looks at its part; a GPU wants large pieces, the CPU's cache small ones."""
        mine, size = world.part(len(test_labels)), 256 if model.device == "cpu" else 2000
        found = evaluate(model, test_images[mine], test_labels[mine], size).over(world.sum)
        return {"test_loss": found.loss, "test_accuracy": found.accuracy}

    if options.accumulate == 1:
        world.overlap(model)
    step = on_each_rank(train_step, model, optimizer, world, options.graph)
    epochs_done, batches_done = divmod(run.step, len(batches))
    done = epochs_done * len(train_images) + batches_done * options.batch_size
    with run.bar(options.epochs * len(train_images), done) as bar:
        for epoch in range(len(run.history), options.epochs):
            bar.set_description_str(f"epoch {epoch + 1}/{options.epochs}")
            model.train()
            for images, labels in batches.epoch(epoch, start=run.step - epoch * len(batches)):
                optimizer.lr_factor = schedule(
                    run.step, total_steps, warmup_steps, options.schedule
                )
                mine = world.part(len(labels))
                found = step(world.counts(len(labels)), images[mine], labels[mine])
                run.add(len(labels), *found)
                if run.interrupted:
                    return run.stop()
            run.end_row(validate)

    # ---- report
    if world.rank:
        return 0
    run.write_metrics()
    seconds = sum(row["seconds"] for row in run.history)
    probabilities = model.predict_proba(test_images)
    pictures = save_pictures(run.out, run.history, test_images, test_labels, probabilities)
    rate = options.epochs * len(train_images) / max(1e-9, seconds)
    say(
        f"test accuracy {run.history[-1]['test_accuracy']:.2%} on {len(test_labels):,} images "
        f"after the last step\n"
        f"{options.epochs} epochs in {seconds:.0f} s, {rate:,.0f} images/s; "
        f"{model.num_parameters():,} parameters\n"
        f"wrote {', '.join(map(printable, [run.checkpoint, run.out / 'metrics.csv', *pictures]))}"
    )
    if not pictures:
        say("for pictures of the curves and the mistakes: pip install matplotlib, then "
            f"--resume --out {command([str(run.out)])}")  # fmt: skip
    return 0


def make_model(run: Run, images: np.ndarray, classes: int) -> Mixer:
    """A new one; or that of --weights or of the run to resume, of whose sizes `options` learns."""
    options, world = run.options, run.world
    source = run.checkpoint if options.resume else options.weights
    preparation = None if options.data_dir else "digit"  # what predict.py does to pictures
    if not source:
        return Mixer(
            image_size=images.shape[1:3],
            in_channels=images.shape[3],
            num_classes=classes,
            stochastic_depth=options.stochastic_depth,
            class_names=[str(label) for label in range(classes)],
            preparation=preparation,
            seed=options.seed,
            checkpoint_blocks=options.checkpoint_blocks,
            **{name: getattr(options, name) for name in SIZES},
        )
    model = world.share(Mixer.load(source) if world.rank == 0 else None)  # the file is rank 0's
    met, wanted = (model.height, model.width, model.in_channels, model.num_classes), (
        *images.shape[1:], classes)  # fmt: skip
    if met != wanted:
        raise ValueError(f"{source} is for images (H, W, channels) of {met[:3]} and {met[3]} "
                         f"classes; the data have {wanted[:3]} and {wanted[3]}")  # fmt: skip
    for name in SIZES:
        if getattr(options, name) != model.config[name] and (name in run.given or options.resume):
            raise ValueError(f"{dashes(name)} is {model.config[name]} in {source}; leave it out")
        setattr(options, name, model.config[name])
    if not options.resume:
        model = remake(model, stochastic_depth=options.stochastic_depth, preparation=preparation)
        model.random.seed = options.seed
    model.checkpoint_blocks = options.checkpoint_blocks
    return model


# ---- options --------------------------------------------------------------------------------


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_out(OUT)
    parser.add_argument(
        "--graph", default="auto", choices=["auto", "on", "off"],
        help="CUDA graphs: record a training step and replay it (default: auto, on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-blocks", action="store_true",
        help="keep only each block's input for backward: less memory, more time, same results",
    )  # fmt: skip
    parser.add_resume()
    on_gpu = {name: f"on a GPU: {value}" for name, value in GPU_SETTINGS.items()}
    parser.add_settings(SETTINGS, on_gpu)
    return parser


def check_settings(options: argparse.Namespace) -> None:
    check_range(options, "epochs batch_size accumulate", 1, 1e9)
    check_range(options, " ".join(SIZES), 1, np.inf)
    check_range(options, "lr", 1e-12, np.inf)
    check_range(options, "max_shift clip seed limit_train weight_decay", 0, np.inf)
    check_range(options, "stochastic_depth warmup", 0, 1)
    check_choice(options, "schedule", "cosine", "linear", "constant")


if __name__ == "__main__":
    run_script(
        main, "train_mnist",
        memory="--accumulate and --checkpoint-blocks need less for the same result, a lower "
        "--batch-size or --hidden-dim as well",
    )  # fmt: skip
