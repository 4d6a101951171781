"""Train a Mixer on MNIST, or on any data set of IDX files.

    python examples/train_mnist.py                      the embedded MNIST, a few minutes on 2 cores
    python examples/train_mnist.py --device cuda        the same on a GPU
    python examples/train_mnist.py --data-dir DIR       Fashion-MNIST, KMNIST, your own
    mpirun -n 2 python examples/train_mnist.py          two processes; with --device cuda, GPUs

Ctrl-C saves a checkpoint; --resume goes on from it, to the same weights, bit for bit. A run that is
over is trained on by a new one, with a schedule of its own: --weights runs/mnist/checkpoint.npz.

Read it from top to bottom: settings, data, model, optimizer, one step, the loop. What makes a run
last is called by a line each from support/: `run` keeps it on disk and shows how far it is
(run.py), `world` is all processes that share it (minimixer/parallel), SharedStep gives each its
part of a batch (steps.py). Which pages of the package a step runs through, one after another, is
a table in minimixer/training/loop.py.
"""

from support import begin  # noqa: F401  isort: skip  (from here on Ctrl-C ends cleanly)

import numpy as np

from minimixer import AdamW, Mixer, data, kernels, parallel, schedule
from minimixer import functional as F
from minimixer.training.gpu_batches import on_device, placed
from minimixer.training.metrics import correct, evaluate
from minimixer.training.names import printable
from support.options import Parser, parse, run_script
from support.run import Run
from support.settings import SIZES, Between, OneOf, Setting, Text
from support.start import fingerprint, load_model, prepare, set_precision
from support.steps import SharedStep, parts
from support.stopping import say

# ---- settings: default, what is allowed, what it is ---------------------------------------------

# Chosen on 5,000 held-out training images; the test set had no say. So were those for a GPU, where
# a step takes half a millisecond.
SETTINGS = {
    "patch_size": Setting(7, Between(1), "P: side of a patch, a divisor of the image's height and "
                          "width", on_gpu=4),
    "num_blocks": Setting(4, Between(1), "N: Mixer blocks"),
    "hidden_dim": Setting(96, Between(1), "C: channels"),
    "tokens_mlp_dim": Setting(32, Between(1), "D_S: hidden units of the token-mixing MLP",
                              on_gpu=64),
    "channels_mlp_dim": Setting(256, Between(1), "D_C: hidden units of the channel-mixing MLP"),
    "epochs": Setting(6, Between(1, 1e9), "passes over the training images", on_gpu=40),
    "batch_size": Setting(128, Between(1, 1e9), "images a step"),
    "lr": Setting(4e-3, Between(1e-12), "learning rate at its highest"),
    "weight_decay": Setting(0.05, Between(0), "AdamW's decay, on matrices only"),
    "schedule": Setting("cosine", OneOf("cosine", "linear", "constant"), "learning rate after the "
                        "warm-up: cosine, linear or constant"),
    "warmup": Setting(0.1, Between(0, 1), "share of the steps in which the learning rate rises"),
    "stochastic_depth": Setting(0.0, Between(0, 1), "probability of skipping the last block, less "
                                "for those before it", on_gpu=0.1),
    "max_shift": Setting(1, Between(0), "each image moves by up to so many pixels, anew in each "
                         "epoch", on_gpu=2),
    "accumulate": Setting(1, Between(1, 1e9), "cut each batch into so many parts, for their "
                          "gradients' sum: less memory"),
    "clip": Setting(0.0, Between(0), "largest gradient norm; 0: no clipping"),
    "precision": Setting("float32", Text(), "float32, tf32 (a GPU's), bfloat16 or float16",
                         on_gpu="bfloat16"),
    "weights": Setting("", Text(), "a checkpoint to start from, whose sizes the model takes"),
    "seed": Setting(0, Between(0), "initial weights, order of the images, shifts"),
    "limit_train": Setting(0, Between(0), "train on the first so many images only; 0: all"),
    "data_dir": Setting("", Text(), "directory of IDX files: train-images-idx3-ubyte, "
                        "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, "
                        "each plain or .gz; default: the embedded MNIST"),
}  # fmt: skip
OUT = "runs/mnist"


def main() -> int:
    with parallel.start() as world:  # of one process, unless mpirun started several
        options, given = parse(make_parser)
        with Run(options, given, SETTINGS, world, OUT) as run:
            return train(run)


def train(run: Run) -> int:
    options, world = run.options, run.world
    device = prepare(run)
    world.check_batch_size(options.batch_size)

    # ---- data
    source = options.data_dir or "the embedded MNIST"
    arrays = data.load_directory(source) if options.data_dir else data.load_mnist()
    train_images, train_labels, test_images, test_labels = arrays
    if options.limit_train:
        train_images = train_images[: options.limit_train]
        train_labels = train_labels[: options.limit_train]
    classes = data.num_classes(np.concatenate([train_labels, test_labels]))
    batches = data.Batches(
        train_images, train_labels, options.batch_size, options.seed, options.max_shift
    )
    batches = on_device(batches, device)  # a GPU makes its own
    held_out = placed(test_images, device)

    # ---- model
    preparation = None if options.data_dir else "digit"  # what predict.py does to pictures
    started = run.checkpoint if options.resume else options.weights
    if started:
        model = load_model(run, started, train_images.shape[1:], classes, preparation)
    else:
        model = Mixer(
            image_size=train_images.shape[1:3],
            in_channels=train_images.shape[3],
            num_classes=classes,
            stochastic_depth=options.stochastic_depth,
            class_names=[str(label) for label in range(classes)],
            preparation=preparation,
            seed=options.seed,
            checkpoint_blocks=options.checkpoint_blocks,
            **{name: getattr(options, name) for name in SIZES},
        )
    set_precision(run, model.to(device))

    # ---- optimizer, schedule
    optimizer = AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    total_steps = options.epochs * len(batches)
    warmup_steps = int(options.warmup * total_steps)
    number = fingerprint(train_images, train_labels, test_images, test_labels)
    run.start(model, optimizer, total_steps, len(batches), number)
    say(
        f"{len(train_images):,} training images of {classes} classes from {printable(source)}; "
        f"Mixer with {model.num_parameters():,} parameters on {device}; {kernels.status()}"
    )

    # ---- one step
    def train_step(images, labels, *, count, first):
        """One step on a batch of `count` images, of which these are the ones from `first` on, in
        --accumulate parts: (their share of the mean loss, how many were right)."""
        total, right = 0.0, 0
        for part in parts(len(images), options.accumulate):
            model.random.start_at(first + part.start)  # for layers that draw by example
            logits = model(images[part])
            # Each part's share of the batch's mean.
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
        """Every process looks at its part; a GPU wants large pieces (4 million pixels), the CPU's
        cache small ones."""
        mine = world.part(len(test_labels))
        size = 256 if model.device == "cpu" else -(-4_000_000 // test_images[0].size)
        return evaluate(model, held_out[mine], test_labels[mine], size).over(world.sum)

    # ---- the loop
    # On the CPU it calls train_step (by way of graph/recorded.py); on a GPU that is recorded once,
    # and replayed.
    step = SharedStep(train_step, model, optimizer, world, options)
    with run.bar(options.epochs * len(train_images), run.images):
        for epoch, _ in run.rows():  # of metrics.csv, one an epoch: those that are left
            model.train()
            for images, labels in batches.epoch(epoch, start=run.step - epoch * len(batches)):
                optimizer.lr_factor = schedule(
                    run.step, total_steps, warmup_steps, options.schedule
                )
                loss, right = step.split(images, labels)  # train_step, on this process's part
                run.add(len(labels), loss, right)  # and run.step += 1
                if run.interrupted:  # by Ctrl-C
                    return run.stop()
            run.end_row(validate)  # in metrics.csv, and a checkpoint

    # ---- report
    if world.rank == 0:
        run.report(
            f"test accuracy {run.history[-1]['test_accuracy']:.2%} on {len(test_labels):,} images "
            f"after the last step\n"
            f"{options.epochs} epochs in {run.seconds:.0f} s, {run.rate:,.0f} images/s; "
            f"{model.num_parameters():,} parameters",
            test_images, test_labels, model.predict_proba(test_images),
        )  # fmt: skip
    return 0


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_device()
    parser.add_out(OUT)
    parser.add_graph()
    parser.add_argument(
        "--checkpoint-blocks", action="store_true",
        help="keep only each block's input for backward: less memory, more time, same results",
    )  # fmt: skip
    parser.add_resume()
    parser.add_settings(SETTINGS)
    return parser


if __name__ == "__main__":
    run_script(
        main, "train_mnist",
        memory="--accumulate and --checkpoint-blocks need less for the same result, a lower "
        "--batch-size or --hidden-dim as well",
    )  # fmt: skip
