"""The peers' side of benchmark.py: the same Mixer in PyTorch (timm) and in JAX (Flax and optax).

    python examples/benchmark_peers.py torch|jax PROBLEM.npz RESULT.npz '{"config": {...}, ...}'

PROBLEM.npz holds every weight under minimixer's names and in its layouts, `images` (B, H, W, in)
and `labels` (B,). The settings, all but `config` optional, are

    config      the sizes: image_size ... channels_mlp_dim, as Mixer's arguments
    precision   "float32", "tf32" or "bfloat16": training in mixed precision (weights and optimizer
                in float32), inference in bfloat16 alone
    device      "cpu" or "cuda"
    mode        "eager", "compile", "max-autotune", "reduce-overhead", or "graph" (all of a step of
                the eager model in one CUDA graph), for PyTorch
    work        what to time, of "train" and "inference"
    seconds     for how long, after `warm_up` steps; or `steps`: exactly so many
    check       true: also compute logits, loss and gradients of the weights as loaded
    lr, weight_decay

RESULT.npz receives the seconds of every step, `train.times` and `inference.times`, and the check's
`logits`, `loss` and `grad.NAME`, laid out as the weights. The last line on stdout, JSON, has median
times and peaks of memory. PyTorch's peaks on a GPU are those of the timed steps; the others are the
whole process's, so only the first work's means something. JAX adds `planned_bytes`, what the
compiled program itself needs, without the compiler's own trials.
"""

import contextlib
import gc
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BETAS, ADAM_EPSILON, NORM_EPSILON = (0.9, 0.999), 1e-8, 1e-6
DEFAULTS = {"precision": "float32", "device": "cpu", "mode": "compile", "lr": 1e-3,
            "work": ["train", "inference"], "weight_decay": 0.05, "warm_up": 10, "seconds": 2.0,
            "steps": None, "check": False}  # fmt: skip
RENAMED = {
    "torch": [(r"\.w([12])$", r".fc\1.weight"), (r"\.b([12])$", r".fc\1.bias"),
              ("token_mixing", "mlp_tokens"), ("channel_mixing", "mlp_channels"),
              ("^stem", "stem.proj")],
    "jax": [(r"\.w([12])$", r".fc\1.kernel"), (r"\.b([12])$", r".fc\1.bias"),
            (r"(norm[12]?)\.weight", r"\1.scale"), ("weight$", "kernel"), (r"blocks\.", "blocks_")],
}  # fmt: skip


class Peer(NamedTuple):
    version: str
    train: Callable  # () -> step; a step returns the loss, once all its work is done
    inference: Callable  # () -> step; a step returns the logits
    check: Callable  # () -> logits, loss and the gradients under the peer's names
    forget: Callable  # frees what earlier work left and restarts the peaks of memory
    memory: Callable  # () -> {"peak_bytes": ...}


def main() -> None:
    if len(sys.argv) != 5 or sys.argv[1] not in RENAMED:
        raise SystemExit("usage: benchmark_peers.py torch|jax PROBLEM.npz RESULT.npz SETTINGS")
    peer, problem, result, settings = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        report = run(peer, problem, result, DEFAULTS | json.loads(settings))
    print(json.dumps(report))


def run(name: str, problem: str, result: str, settings: dict) -> dict[str, Any]:
    weights = dict(np.load(problem))
    images, labels = weights.pop("images"), weights.pop("labels")
    patch = settings["config"]["patch_size"]
    packed = {rename(k, name): pack(k, value, patch, name) for k, value in weights.items()}
    try:
        peer = (torch_peer if name == "torch" else jax_peer)(packed, images, labels, settings)
    except ImportError as error:
        packages = "torch and timm" if name == "torch" else "jax, flax and optax"
        print(f"benchmark_peers.py: {name} needs the packages {packages}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    mode = settings["mode"] if name == "torch" else "jit"
    report = {"peer": name, "version": peer.version, "mode": mode, "loss": None}
    arrays = {}
    for work in ("train", "inference"):
        if work in settings["work"]:
            report[work], arrays[f"{work}.times"], first = measure(peer, work, settings)
            if work == "train":
                report["loss"] = first
    if settings["check"]:  # after the timing, whose peaks of memory it would raise
        peer.forget()
        logits, loss, gradients = peer.check()
        arrays |= {"logits": logits, "loss": np.float32(loss)}
        for k, value in weights.items():
            arrays[f"grad.{k}"] = unpack(k, gradients[rename(k, name)], value.shape, name)
        report["loss"] = float(loss)
    np.savez(result, **arrays)
    return report


def measure(peer: Peer, work: str, settings: dict) -> tuple[dict, np.ndarray, Any]:
    """The report, the seconds of each timed step, and what the very first step returned."""
    peer.forget()
    step = getattr(peer, work)()
    first = step().tolist()
    for _ in range(settings["warm_up"] - 1):
        step()
    peer.forget()
    step()  # fills the caches of memory again
    times: list[float] = []
    steps, left = settings["steps"], settings["seconds"]
    while len(times) < steps if steps else len(times) < 5 or left > 0:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        left -= times[-1]
    report = {"ms": 1e3 * statistics.median(times), "steps": len(times), **peer.memory()}
    return report, np.array(times), first


def process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def rename(name: str, peer: str) -> str:
    for mine, theirs in RENAMED[peer]:
        name = re.sub(mine, theirs, name)
    return name


def axes(name: str, rank: int, peer: str) -> tuple[int, ...]:
    """PyTorch's matrices are (out, in), Flax's (in, out), and so are minimixer's but one."""
    if rank == 4:  # the stem, a convolution: from (row, column, in, out)
        return (3, 2, 0, 1) if peer == "torch" else (0, 1, 2, 3)
    flip = rank == 2 and (peer == "torch") != name.endswith("token_mixing.w2")
    return (1, 0) if flip else tuple(range(rank))


def pack(name: str, value: np.ndarray, patch: int, peer: str) -> np.ndarray:
    """The weight in the peer's layout."""
    if name == "stem.weight":
        value = value.reshape(patch, patch, -1, value.shape[-1])
    return np.ascontiguousarray(value.transpose(axes(name, value.ndim, peer)))


def unpack(name: str, value: np.ndarray, shape: tuple[int, ...], peer: str) -> np.ndarray:
    """And back to minimixer's."""
    return value.transpose(np.argsort(axes(name, value.ndim, peer))).reshape(shape)


def torch_peer(weights: dict, images: np.ndarray, labels: np.ndarray, settings: dict) -> Peer:
    """As its users run it: timm's model, torch.compile, autocast, fused AdamW."""
    import torch
    from timm.layers import GELUTanh
    from timm.models.mlp_mixer import MlpMixer

    config, device, mode = settings["config"], settings["device"], settings["mode"]
    on_gpu, mixed = device == "cuda", settings["precision"] == "bfloat16"
    torch.set_float32_matmul_precision("high" if settings["precision"] == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = settings["precision"] == "tf32"
    targets = torch.tensor(labels, device=device)

    def load(dtype=torch.float32):
        """The model, itself compiled, and the images."""
        torch.compiler.reset()
        width = config["hidden_dim"]  # timm multiplies the ratios by it and rounds down
        ratios = [(config[f"{kind}_mlp_dim"] + 0.5) / width for kind in ("tokens", "channels")]
        model = MlpMixer(
            config["num_classes"], config["image_size"], config["in_channels"],
            config["patch_size"], config["num_blocks"], width, ratios, act_layer=GELUTanh,
        )  # fmt: skip
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        model.to(device, dtype)
        kind = {"mode": mode} if mode in ("max-autotune", "reduce-overhead") else {}
        compiled = model if mode in ("eager", "graph") else torch.compile(model, **kind)
        inputs = torch.tensor(images).permute(0, 3, 1, 2).contiguous().to(device, dtype)
        return model, compiled, inputs

    def forward(compiled, inputs):
        torch.compiler.cudagraph_mark_step_begin()  # for max-autotune, which replays CUDA graphs
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            logits = compiled(inputs)
            return logits, torch.nn.functional.cross_entropy(logits, targets)

    def train():
        model, compiled, inputs = load()
        matrices = {"params": [p for p in model.parameters() if p.ndim > 1]}
        others = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(
            [matrices, others], lr=settings["lr"], betas=BETAS, eps=ADAM_EPSILON,
            weight_decay=settings["weight_decay"], fused=on_gpu or None, capturable=mode == "graph",
        )  # fmt: skip

        def step():
            _, loss = forward(compiled, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return finish(step)

    def finish(step):
        """The step, to the end of the device's work; in mode "graph" recorded and replayed."""
        if mode == "graph":
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = step()

        def finished():
            if mode == "graph":
                graph.replay()
            found = result if mode == "graph" else step()
            if on_gpu:
                torch.cuda.synchronize()
            return found

        return finished

    def inference():
        model, compiled, inputs = load(torch.bfloat16 if mixed else torch.float32)
        model.eval()

        @torch.inference_mode()
        def step():
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(inputs)

        return finish(step)

    def check():
        model, compiled, inputs = load()
        logits, loss = forward(compiled, inputs)
        loss.backward()
        gradients = {name: p.grad.cpu().numpy() for name, p in model.named_parameters()}
        return logits.detach().float().cpu().numpy(), loss.item(), gradients

    def forget():
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory():
        peak = torch.cuda.max_memory_allocated() if on_gpu else process_peak()
        return {"peak_bytes": peak, "reserved_bytes": torch.cuda.max_memory_reserved() or None}

    return Peer(torch.__version__, train, inference, check, forget, memory)


def jax_peer(weights: dict, images: np.ndarray, labels: np.ndarray, settings: dict) -> Peer:
    """As its users run it: the whole step in one jit that is donated weights and optimizer."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_PLATFORMS"] = settings["device"]
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.traverse_util import flatten_dict, unflatten_dict

    config = settings["config"]
    products = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}
    jax.config.update("jax_default_matmul_precision", products[settings["precision"]])
    low = jnp.bfloat16 if settings["precision"] == "bfloat16" else jnp.float32
    targets = jnp.array(labels, jnp.int32)
    planned = {}  # bytes, of the work compiled last

    class MLP(nn.Module):
        hidden: int

        @nn.compact
        def __call__(self, x):
            y = nn.Dense(self.hidden, dtype=low, name="fc1")(x)
            return nn.Dense(x.shape[-1], dtype=low, name="fc2")(nn.gelu(y, approximate=True))

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm1")(x).swapaxes(1, 2)
            x = x + MLP(config["tokens_mlp_dim"], name="token_mixing")(y).swapaxes(1, 2)
            y = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm2")(x)
            return x + MLP(config["channels_mlp_dim"], name="channel_mixing")(y)

    class Mixer(nn.Module):
        logits_dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x):
            side, width = (config["patch_size"],) * 2, config["hidden_dim"]
            x = nn.Conv(width, side, strides=side, padding="VALID", dtype=low, name="stem")(x)
            x = x.reshape(len(x), -1, width)
            for i in range(config["num_blocks"]):
                x = Block(name=f"blocks_{i}")(x)
            x = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm")(x).mean(axis=1)
            return nn.Dense(config["num_classes"], dtype=self.logits_dtype, name="head")(x)

    def load(dtype=jnp.float32):
        flat = {name: jnp.array(value, dtype) for name, value in weights.items()}
        return unflatten_dict(flat, sep="."), jnp.array(images, dtype)

    def loss_of(params, images, labels):
        logits = Mixer().apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    def compile_for(function, *arguments, donate=()):
        compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
        if plan := compiled.memory_analysis():
            results = plan.output_size_in_bytes - plan.alias_size_in_bytes  # alias: donated
            planned["planned_bytes"] = (
                plan.argument_size_in_bytes + results + plan.temp_size_in_bytes
            )
        return compiled

    def train():
        params, inputs = load()
        matrices = jax.tree.map(lambda p: p.ndim > 1, params)
        optimizer = optax.adamw(
            settings["lr"], *BETAS, eps=ADAM_EPSILON,
            weight_decay=settings["weight_decay"], mask=matrices,
        )  # fmt: skip
        state = optimizer.init(params)

        def update(params, state, images, labels):
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, _), gradients = gradient(params, images, labels)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        compiled = compile_for(update, params, state, inputs, targets, donate=(0, 1))

        def step():
            nonlocal params, state
            params, state, loss = jax.block_until_ready(compiled(params, state, inputs, targets))
            return loss

        return step

    def inference():
        params, inputs = load(low)
        predict = compile_for(lambda p, x: Mixer(low).apply({"params": p}, x), params, inputs)
        return lambda: jax.block_until_ready(predict(params, inputs))

    def check():
        params, inputs = load()
        gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
        (loss, logits), gradients = jax.device_get(gradient(params, inputs, targets))
        return logits, loss, flatten_dict(gradients, sep=".")

    def memory():
        stats = jax.devices()[0].memory_stats() or {}
        peak = process_peak() if settings["device"] == "cpu" else stats.get("peak_bytes_in_use")
        return {"peak_bytes": peak, "reserved_bytes": stats.get("peak_pool_bytes"), **planned}

    return Peer(jax.__version__, train, inference, check, gc.collect, memory)


if __name__ == "__main__":
    main()
