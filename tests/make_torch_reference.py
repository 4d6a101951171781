"""Write torch_reference.npz: a small Mixer, its gradients and its optimizer steps, as PyTorch computes them.

The tests read the stored file, so they need no PyTorch. It was made on a CPU by Python 3.11.7, torch 2.13.0+cpu and
NumPy 2.4.6, from the root of the repository, with

    python tests/make_torch_reference.py

Everything is float64, the integers ("labels", "ce/labels", "config/...", "<opt>/steps") int64, "sgd/nesterov" bool.
Every parameter is drawn at random, the head included. All draws are NumPy's, from fixed seeds. <name> runs over the
names in `parameter_shapes` below; <form> is GELU's form, "tanh" or "none" (the exact one, with erf), as
F.gelu(approximate=...) calls them; <opt> is "adamw", "adam" or "sgd".

config/...                image_height, image_width, patch_size, in_channels, num_classes, num_blocks, num_tokens (S),
                          hidden_dim (C), tokens_mlp_dim (D_S), channels_mlp_dim (D_C), batch_size (B), epsilon
images, labels            (B, H, W, in_channels) and (B,)
param/<name>              the initial values
<form>/logits             (B, K), at the initial values
<form>/loss               the mean cross-entropy of those logits
<form>/grad/<name>        its gradient by each parameter; by token_mixing.b2 it is zero up to rounding
<form>/grad_images        its gradient by the images

<opt>/param/<name>        the values after `steps` steps on the same batch, in the tanh form
<opt>/logits              (B, K), at those values
<opt>/losses              (steps,) the loss before each step
<opt>/norms               (steps,) the norm of all gradients together before each step, before clipping
<opt>/steps, max_norm     the number of steps, and the bound that clips some of them and leaves the others alone:
                          gradients are multiplied by min(1, max_norm / (norm + 1e-6)), then handed to the optimizer
<opt>/lr, weight_decay    adamw: decoupled decay, on tensors of two or more dimensions only; adam: no decay;
                          sgd: decay * parameter is added to the (clipped) gradient, of matrices only
<opt>/betas, eps          adamw and adam
sgd/momentum, nesterov

ce/logits, labels, targets            (7, 5), (7,) and (7, 5): scores, classes, distributions over the classes
ce/label_smoothing                    the smoothing of the cases that have it
ce/<case>/<reduction>/loss            <case>: labels, labels_smooth, targets, targets_smooth; <reduction>: mean, sum
ce/<case>/<reduction>/grad_logits     the gradient of that loss

ln/x, weight, bias, eps               (3, 4, 10), (10,), (10,); x[0, 0] varies so little that eps matters there
ln/output, grad_output                (3, 4, 10) both; the second is the gradient that comes in
ln/grad/x, weight, bias               the gradients that go out

gelu/x                                -6 to 6 in steps of 0.1, with 0
gelu/<form>/value, derivative         at each x
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # one order of summation
torch.use_deterministic_algorithms(True)

# No two axes that meet in one activation or weight are equally long (but for P, twice): a mixed-up axis shows.
H, W, P, IN = 12, 8, 4, 3
S, C, D_S, D_C = (H // P) * (W // P), 10, 7, 13
N, K, B = 2, 5, 9
EPSILON = 1e-6

STEPS = 10
OPTIMIZERS = {
    "adamw": {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "max_norm": 1.0},
    "adam": {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_norm": 1.0},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "max_norm": 1.0},
}


# ---- the model, batch first as in the paper --------------------------------------------------------------------------


def parameter_shapes():
    shapes = {"stem.weight": (P * P * IN, C), "stem.bias": (C,)}  # in (row, column, channel) order
    for i in range(N):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in {
            "norm1.weight": (C,), "norm1.bias": (C,),
            "token_mixing.w1": (S, D_S), "token_mixing.b1": (D_S,),
            "token_mixing.w2": (S, D_S), "token_mixing.b2": (S,),  # output = hidden @ w2.T
            "norm2.weight": (C,), "norm2.bias": (C,),
            "channel_mixing.w1": (C, D_C), "channel_mixing.b1": (D_C,),
            "channel_mixing.w2": (D_C, C), "channel_mixing.b2": (C,),
        }.items()}  # fmt: skip
    head = {"norm.weight": (C,), "norm.bias": (C,), "head.weight": (C, K), "head.bias": (K,)}
    return shapes | head


def draw_parameters(rng):
    parameters = {}
    for name, shape in parameter_shapes().items():
        value = rng.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.3 * value
        elif len(shape) == 1:
            value = 0.3 * value
        else:
            value = value / np.sqrt(shape[name.endswith("token_mixing.w2")])
        parameters[name] = value
    return parameters


def leaves(arrays):
    return {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}


def mixer(p, images, form):
    # The stem is a convolution here, as in the authors' code, not a reshape: another route to the same patches.
    kernel = p["stem.weight"].reshape(P, P, IN, C).permute(3, 2, 0, 1)  # (C, IN, P, P)
    x = F.conv2d(images.permute(0, 3, 1, 2), kernel, p["stem.bias"], stride=P)  # (B, C, H/P, W/P)
    x = x.flatten(2).transpose(1, 2)  # (B, S, C), raster order
    for i in range(N):
        q = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items()}
        y = F.layer_norm(x, (C,), q["norm1.weight"], q["norm1.bias"], EPSILON).transpose(1, 2)
        y = F.gelu(y @ q["token_mixing.w1"] + q["token_mixing.b1"], approximate=form)  # (B, C, D_S)
        y = y @ q["token_mixing.w2"].T + q["token_mixing.b2"]  # (B, C, S)
        x = x + y.transpose(1, 2)  # (B, S, C)
        y = F.layer_norm(x, (C,), q["norm2.weight"], q["norm2.bias"], EPSILON)  # (B, S, C)
        y = y @ q["channel_mixing.w1"] + q["channel_mixing.b1"]  # (B, S, D_C)
        y = F.gelu(y, approximate=form)
        x = x + y @ q["channel_mixing.w2"] + q["channel_mixing.b2"]  # (B, S, C)
    x = F.layer_norm(x, (C,), p["norm.weight"], p["norm.bias"], EPSILON).mean(1)  # (B, C)
    return x @ p["head.weight"] + p["head.bias"]  # (B, K)


# ---- what is stored --------------------------------------------------------------------------------------------------


def model_case(parameters, images, labels, form):
    p, x = leaves(parameters), torch.tensor(images, requires_grad=True)
    logits = mixer(p, x, form)
    loss = F.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    grads = {f"grad/{name}": value.grad for name, value in p.items()}
    return {"logits": logits, "loss": loss, "grad_images": x.grad} | grads


def optimizer_case(name, parameters, images, labels):
    settings = dict(OPTIMIZERS[name])
    stored = {"steps": STEPS} | settings
    max_norm = settings.pop("max_norm")
    p, x, y = leaves(parameters), torch.tensor(images), torch.tensor(labels)
    matrices = [value for value in p.values() if value.ndim >= 2]
    vectors = [value for value in p.values() if value.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    optimizer = kinds[name](groups, **settings)

    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(mixer(p, x, "tanh"), y)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), max_norm).item())
        losses.append(loss.item())
        optimizer.step()

    norms = np.array(norms)
    print(
        f"{name}: norms {np.round(norms, 3)}, of which {np.sum(norms > max_norm)} clipped at {max_norm}"
    )
    assert 2 <= np.sum(norms > max_norm) <= STEPS - 2
    assert np.all(np.abs(norms / max_norm - 1) > 1e-3), "so close to the bound, it tests nothing"
    values = {f"param/{key}": value for key, value in p.items()}
    return stored | {"losses": losses, "norms": norms, "logits": mixer(p, x, "tanh")} | values


def cross_entropy_cases(rng, smoothing=0.1):
    logits = 2 * rng.standard_normal((7, 5))
    labels = rng.integers(0, 5, 7)
    targets = rng.dirichlet(np.ones(5), 7)
    result = {"logits": logits, "labels": labels, "targets": targets, "label_smoothing": smoothing}
    for kind, target in (("labels", labels), ("targets", targets)):
        for case, amount in ((kind, 0.0), (f"{kind}_smooth", smoothing)):
            for how in ("mean", "sum"):
                z, t = torch.tensor(logits, requires_grad=True), torch.tensor(target)
                loss = F.cross_entropy(z, t, reduction=how, label_smoothing=amount)
                loss.backward()
                result |= {f"{case}/{how}/loss": loss, f"{case}/{how}/grad_logits": z.grad}
    return result


def layer_norm_case(rng):
    x = 0.5 + 2 * rng.standard_normal((3, 4, 10))
    x[0, 0] = 0.5 + 1e-3 * rng.standard_normal(10)  # a variance as small as epsilon
    weight, bias = 1 + 0.3 * rng.standard_normal(10), 0.3 * rng.standard_normal(10)
    p = leaves({"x": x, "weight": weight, "bias": bias})
    output = F.layer_norm(p["x"], (10,), p["weight"], p["bias"], EPSILON)
    grad_output = rng.standard_normal(x.shape)
    output.backward(torch.tensor(grad_output))
    grads = {f"grad/{name}": value.grad for name, value in p.items()}
    return p | {"eps": EPSILON, "output": output, "grad_output": grad_output} | grads


def gelu_cases():
    grid = np.arange(-60, 61) / 10
    result = {"x": grid}
    for form in ("tanh", "none"):
        x = torch.tensor(grid, requires_grad=True)
        value = F.gelu(x, approximate=form)
        value.sum().backward()
        result |= {f"{form}/value": value, f"{form}/derivative": x.grad}
    return result


def main():
    rng = np.random.default_rng(2105_01601)
    parameters = draw_parameters(rng)
    images = rng.standard_normal((B, H, W, IN))
    labels = rng.integers(0, K, B)

    sizes = {
        "image_height": H, "image_width": W, "patch_size": P, "in_channels": IN, "num_classes": K,
        "num_blocks": N, "num_tokens": S, "hidden_dim": C, "tokens_mlp_dim": D_S,
        "channels_mlp_dim": D_C, "batch_size": B, "epsilon": EPSILON,
    }  # fmt: skip
    arrays = {"images": images, "labels": labels}

    def store(prefix, values):
        for key, value in values.items():
            value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            key = f"{prefix}/{key}"
            assert value.dtype in (np.float64, np.int64, np.bool_) and key not in arrays
            assert np.all(np.isfinite(value)), key
            if "grad" in key:  # nothing is compared with zeros by accident
                zero, size = key.endswith("token_mixing.b2"), np.abs(value)
                assert size.max() < 1e-12 if zero else size.min() > 0 and size.max() > 1e-4, key
            arrays[key] = value

    store("config", sizes)
    store("param", parameters)
    for form in ("tanh", "none"):
        store(form, model_case(parameters, images, labels, form))
    for name in OPTIMIZERS:
        store(name, optimizer_case(name, parameters, images, labels))
    rng = np.random.default_rng(2)  # its own seed: another model leaves these cases as they are
    store("ce", cross_entropy_cases(rng))
    store("ln", layer_norm_case(rng))
    store("gelu", gelu_cases())

    path = Path(__file__).with_name("torch_reference.npz")
    np.savez_compressed(path, **arrays)
    print(f"torch {torch.__version__}, numpy {np.__version__}: {len(arrays)} arrays")


if __name__ == "__main__":
    main()
