"""The Mixer in PyTorch, as its users run it: torch.compile, autocast, fused AdamW.

For benchmark_peers.py, which tells what the settings mean.
"""

import gc

import numpy as np
import torch
from torch import nn

from benchmarks.peers import ADAM_EPSILON, BETAS, NORM_EPSILON, Peer


class MLP(nn.Module):
    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, tokens: int, config: dict):
        super().__init__()
        channels = config["hidden_dim"]
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.token_mixing = MLP(tokens, config["tokens_mlp_dim"])
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.channel_mixing = MLP(channels, config["channels_mlp_dim"])

    def forward(self, x):
        x = x + self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    """The network in the paper's layout, (B, S, C), with its two transposes, as timm's is."""

    def __init__(self, config: dict):
        super().__init__()
        patch, channels = config["patch_size"], config["hidden_dim"]
        tokens = (config["image_size"] // patch) ** 2
        self.stem = nn.Conv2d(config["in_channels"], channels, patch, stride=patch)
        self.blocks = nn.Sequential(*[Block(tokens, config) for _ in range(config["num_blocks"])])
        self.norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.head = nn.Linear(channels, config["num_classes"])

    def forward(self, images):
        x = self.blocks(self.stem(images).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(dim=1))


def peer(weights: dict, images: np.ndarray, labels: np.ndarray, settings: dict) -> Peer:
    config, device, mode = settings["config"], settings["device"], settings["mode"]
    on_gpu, mixed = device == "cuda", settings["precision"] == "bfloat16"
    torch.set_float32_matmul_precision("high" if settings["precision"] == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = settings["precision"] == "tf32"
    targets = torch.tensor(labels, device=device)

    def load(dtype=torch.float32):
        """The model, itself compiled, and the images."""
        torch.compiler.reset()
        model = Mixer(config)
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

    def gradients():
        model, compiled, inputs = load()

        def step():
            _, loss = forward(compiled, inputs)
            loss.backward()
            model.zero_grad(set_to_none=True)
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
        found = {name: p.grad.cpu().numpy() for name, p in model.named_parameters()}
        return logits.detach().float().cpu().numpy(), loss.item(), found

    def forget():
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory():
        if not on_gpu:
            return {}
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_bytes": peak, "reserved_bytes": reserved}

    work = {"train": train, "gradients": gradients, "inference": inference}
    return Peer(torch.__version__, work, check, forget, memory)
