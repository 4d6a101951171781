"""Time, memory and throughput of a Mixer, alone or beside PyTorch, JAX, HIPS autograd and MyGrad.

    python examples/benchmark.py                                        the small model, on the CPU
    python examples/benchmark.py --peers torch --mode eager --runs 5    beside PyTorch
    python examples/benchmark.py --variant mixer_b16 --batch-size 256 --device cuda \\
        --precision bfloat16 --peers torch,jax                          ratios, on a GPU
    ... --profile                                                       where the time goes
    ... --distributed 2                             processes together: benchmarks/distributed.py

Each side runs in a fresh process, in turn, `--runs` times, from the same weights (all drawn at
random, the head's too), with its batch on the device already. Nothing is timed unless the sides'
logits agree and every gradient points the same way (cosine above 0.999; but for the last bias of
token mixing, whose gradient is rounding errors). A training step is forward, loss, backward, AdamW
and zero_grad, and ends when the device is done; `gradients` is forward, loss and backward. On the
CPU memory is the process's growth after the model was built, to its peak in the first work that is
timed. Ratios are those of the turns, in the median: machines are noisy. benchmark_peers.py tells
how peers are run; those whose packages are missing are left out (--peer-python names a Python).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.distributed import compare_processes, run_rank
from benchmarks.peers import PACKAGES
from benchmarks.timing import ratios, spread

# The small model: 28 x 28 images, P 4, C 128, D_S 64, D_C 512, N 4.
SMALL = {"image_size": 28, "patch_size": 4, "in_channels": 1, "num_classes": 10, "num_blocks": 4,
         "hidden_dim": 128, "tokens_mlp_dim": 64, "channels_mlp_dim": 512}  # fmt: skip
SIZES, WORK = set(SMALL), ("train", "gradients", "inference")
LR, DECAY = 1e-3, 0.05
# PyTorch's: as it is; torch.compile; that with its kernels tuned; that with its CUDA graphs; one
# CUDA graph of the whole step as it is.
MODES = ("eager", "compile", "max-autotune", "reduce-overhead", "graph")
GIB = 2**30


def main() -> None:
    options = make_parser().parse_args()
    if options.rank:
        return run_rank(json.loads(options.rank))
    if options.worker:
        from benchmarks.own_side import run_minimixer

        problem, result, settings = options.worker
        print(json.dumps(run_minimixer(problem, result, json.loads(settings))))
        return
    sides = ["minimixer", *check_options(options)]
    config = config_of(options.variant)
    if options.distributed:
        return compare_processes(options, config)
    settings = {
        "config": config, "precision": options.precision, "device": options.device,
        "mode": options.mode, "graph": options.graph, "work": options.work.split(","),
        "checkpoint_blocks": options.checkpoint_blocks,
        "lr": LR, "weight_decay": DECAY, "warm_up": options.warm_up,
        "seconds": options.seconds, "steps": options.steps,
    }  # fmt: skip
    reports: dict[str, list[dict]] = {side: [] for side in sides}
    check = {"check": True, "products": False, "profile": False, "work": []}
    with tempfile.TemporaryDirectory() as directory:
        problem = Path(directory) / "problem.npz"
        write_problem(problem, config, options.batch_size)
        results = {side: Path(directory) / f"{side}.npz" for side in sides}
        if len(sides) > 1:
            for side in sides:
                start(side, options, problem, results[side], settings | check)
            compare(dict(results))
        for turn in range(options.runs):
            for side in sides:
                last = turn == options.runs - 1
                own = {"check": False, "products": last, "profile": last and options.profile}
                report = start(side, options, problem, results[side], settings | own)
                reports[side].append(report)
                shown = [f"{work} {report[work]['ms']:.2f} ms" for work in settings["work"]]
                print(f"  {side:10}", "; ".join(shown), flush=True)
    summarise(options, config, reports)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--variant", default="small", help="small, or a name such as mixer_b16 (default: small)")
    add("--batch-size", type=int, default=128, help="images a step (default: 128)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--precision", default="float32", help="float32, tf32, bfloat16 or float16")
    add("--work", default="train,inference",
        help=f"what to time, of {', '.join(WORK)} (default: train,inference)")  # fmt: skip
    add("--peers", default="", help=f"of {', '.join(PACKAGES)} (default: none)")
    add("--peer-python", default=sys.executable, help="a Python with the peers' packages")
    add("--mode", default="compile", help=f"PyTorch's: {', '.join(MODES)} (default: compile)")
    add("--graph", default="auto", help="CUDA graphs on our side: auto (default), on or off")
    add("--checkpoint-blocks", action="store_true", help="on our side: less memory, more time")
    add("--runs", type=int, default=3, help="processes of each side (default: 3)")
    add("--warm-up", type=int, default=10, help="untimed steps (default: 10)")
    add("--seconds", type=float, default=2.0, help="of timed steps, at least (default: 2)")
    add("--steps", type=int, help="exactly so many timed steps instead")
    add("--distributed", type=int, default=0, metavar="N", help="N processes beside one")
    add("--weak", action="store_true", help="with it: --batch-size is that of each")
    add("--profile", action="store_true", help="also print time and rates per operation")
    add("--worker", nargs=3, help=argparse.SUPPRESS)
    add("--rank", help=argparse.SUPPRESS)
    return parser


def check_options(options) -> list[str]:
    """The peers that can be run. ValueError, before anything is timed."""
    from minimixer import backend

    peers = [peer for peer in options.peers.split(",") if peer]
    if set(peers) - set(PACKAGES) or len(set(peers)) < len(peers):
        raise ValueError(f"--peers {options.peers}: choose from {', '.join(PACKAGES)}")
    work = options.work.split(",")
    if set(work) - set(WORK) or len(set(work)) < len(work):
        raise ValueError(f"--work {options.work}: choose from {', '.join(WORK)}")
    primitive = {"autograd", "mygrad"} & set(peers)
    if primitive and "train" in work:
        raise ValueError("autograd and mygrad have no optimizer: use --work gradients,inference")
    if options.mode not in MODES:
        raise ValueError(f"--mode {options.mode}: {', '.join(MODES)}")
    if options.graph not in ("auto", "on", "off"):
        raise ValueError(f"--graph {options.graph}: auto, on or off")
    for name in ("batch_size", "runs", "seconds"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive")
    if options.distributed and (options.distributed < 2 or options.peers):
        raise ValueError("--distributed needs 2 processes or more, and has no --peers")
    if options.warm_up < 0 or (options.steps is not None and options.steps < 1):
        raise ValueError("--warm-up must not be negative, --steps must be positive")
    device = backend.check_device(options.device)
    backend.check_precision(options.precision, device)
    if peers and (options.precision == "float16" or device not in ("cpu", "cuda:0")):
        raise ValueError("the peers are timed on cpu or cuda, in float32, tf32 or bfloat16")
    if primitive and (device, options.precision) != ("cpu", "float32"):
        raise ValueError("autograd and mygrad are timed on the cpu, in float32")
    return [peer for peer in peers if is_there(peer, options.peer_python)]


def is_there(peer: str, python: str) -> bool:
    missing = f"any(u.find_spec(name) is None for name in {PACKAGES[peer]})"
    if subprocess.run([python, "-c", f"import importlib.util as u; exit({missing})"]).returncode:
        needs = " and ".join(PACKAGES[peer])
        print(f"  {peer:10} left out: it needs {needs}, which {python} has not")
        return False
    return True


def config_of(variant_name: str) -> dict:
    from minimixer.model.variants import check_config, variant

    if variant_name == "small":
        return SMALL
    config = check_config(**variant(variant_name))
    return {key: value for key, value in config.items() if key in SIZES} | {"image_size": 224}


def write_problem(path: Path, config: dict, batch: int) -> None:
    """Weights of a size at which signals keep theirs, images and labels, all at random."""
    from minimixer import Mixer

    random = np.random.default_rng(0)
    arrays = {}
    for name, value in Mixer(**config, seed=None).state_dict().items():
        drawn = random.standard_normal(value.shape, dtype=np.float32)
        token_w2 = name.endswith("token_mixing.w2")  # stored (S, D_S), read from the right
        fan_in = value.shape[-1 if token_w2 else 0] if value.ndim > 1 else 100
        drawn *= fan_in**-0.5
        is_scale = value.ndim == 1 and "norm" in name and name.endswith("weight")
        arrays[name] = drawn + np.float32(is_scale)
    size, channels = config["image_size"], config["in_channels"]
    arrays["images"] = random.standard_normal((batch, size, size, channels), dtype=np.float32)
    np.savez(path, labels=random.integers(0, config["num_classes"], batch), **arrays)


def start(side: str, options, problem: Path, result: Path, settings: dict) -> dict:
    """One side in a fresh process: its report, the last line that it prints."""
    files = [str(problem), str(result), json.dumps(settings)]
    if side == "minimixer":
        command = [sys.executable, __file__, "--worker", *files]
    else:
        peers = str(Path(__file__).with_name("benchmark_peers.py"))
        files[2] = json.dumps(settings | {"device": settings["device"].partition(":")[0]})
        command = [options.peer_python, peers, side, *files]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        print(f"benchmark: {side} failed, see above", file=sys.stderr)
        raise SystemExit(2)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(results: dict[str, Path]) -> None:
    """SystemExit unless all sides computed the same logits and gradients."""
    own = np.load(results.pop("minimixer"))
    for side, file in results.items():
        theirs = np.load(file)
        distance = np.linalg.norm(own["logits"] - theirs["logits"])
        distance /= np.linalg.norm(theirs["logits"])
        worst, where, least, most = 1.0, "", 1.0, 1.0
        for name in own.files:
            # A bias that shifts whole rows before a LayerNorm has no gradient but noise.
            if name.startswith("grad.") and not name.endswith("token_mixing.b2"):
                a, b = own[name].ravel().astype(np.float64), theirs[name].ravel()
                norms = np.linalg.norm(a), np.linalg.norm(b)
                if not (np.isfinite(norms).all() and all(norms)):
                    raise SystemExit(
                        f"benchmark: {name} has the norm {norms[0]:g}, {side}'s {norms[1]:g}; "
                        "nothing can be compared"
                    )
                worst, where = min((worst, where), (a @ b / (norms[0] * norms[1]), name))
                least, most = min(least, norms[0] / norms[1]), max(most, norms[0] / norms[1])
        print(
            f"  {side}: logits differ by {distance:.1e} of their norm, loss {own['loss']:.4f} and "
            f"{theirs['loss']:.4f}; smallest cosine of gradients {worst:.6f} ({where}), "
            f"their norms {least:.4f} to {most:.4f} of {side}'s"
        )
        if not (worst > 0.999 and distance < 0.05 and 0.97 < least <= most < 1.03):
            raise SystemExit(f"benchmark: minimixer and {side} do not compute the same")


def summarise(options, config: dict, reports: dict[str, list[dict]]) -> None:
    from minimixer.model.variants import check_config
    from minimixer.training.summary import Summary

    last = reports["minimixer"][-1]
    macs = Summary(check_config(**config)).macs * options.batch_size
    print(f"{options.variant}, batch {options.batch_size}, {options.precision}, {last['machine']}")
    for work in options.work.split(","):
        flops = 2 * macs * (1 if work == "inference" else 3)
        own = [report[work]["ms"] for report in reports["minimixer"]]
        for side, runs in reports.items():
            times = [report[work]["ms"] for report in runs]
            ms = statistics.median(times)
            line = f"  {work:9} {side:9} {ms:9.2f} ms ({min(times):.2f} to {max(times):.2f})"
            line += (
                f" {options.batch_size / ms * 1e3:9,.0f} images/s {flops / ms / 1e6:9,.0f} GFLOP/s"
            )
            peak, reserved = (runs[-1][work].get(f"{k}_bytes") for k in ("peak", "reserved"))
            if peak:
                line += f" {peak / GIB:6.2f} GiB" + (
                    f" of {reserved / GIB:.2f}" if reserved else ""
                )
            growth = [run[work]["growth_bytes"] for run in runs if "growth_bytes" in run[work]]
            if growth:
                line += f", grows by {statistics.median(growth) / 2**20:.0f} MiB"
            if side != "minimixer":
                line += f"  ratio {spread(ratios(own, times))}"
                kind = "growth_bytes" if growth else "peak_bytes"
                both = [[run[work].get(kind) for run in r] for r in (reports["minimixer"], runs)]
                if work != "inference" and all(both[0]) and all(both[1]):
                    line += f", memory {statistics.median(ratios(*both)):.3f}"
            print(line)
        products = last[work].get("products_ms")
        if products:
            ms = statistics.median(own)
            print(
                f"  {work:9} products alone {products:.2f} ms ({ms / products:.2f} times that in "
                f"all); one large product reaches {last['large_product'] * 1e3:,.0f} GFLOP/s, the "
                f"step {flops / ms / 1e9 / last['large_product']:.0%} of it"
            )
        for row in last[work].get("profile", []):
            print("    " + row)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, OSError, MemoryError) as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
