"""Write baselines_reference.npz: attention, convolution, pooling, GroupNorm, and small ViTs and
ResNets with their gradients, as PyTorch computes them.

The tests read the stored file, so they need no PyTorch. It was made on a CPU by Python 3.11.7,
torch 2.13.0+cpu and NumPy 2.4.6, from the root of the repository, with

    PYTHONPATH=.:examples python tests/make_baselines_reference.py

All draws are NumPy's, from fixed seeds, rounded to float32: so inputs, images and parameters are
stored as that, results and gradients as the float64 that PyTorch computed in. Layouts are those of
examples/: images (B, H, W, channels), tokens (S, B, C), weights of convolutions
(kernel * kernel * in, out).

about                     JSON, of all that is no array: by <op>/<case>, what the operation is
                          called with; by model/<name>, the arguments of the class that "class"
                          names, and "shapes", the parameters' names and shapes
<op>/<case>/in<i>         its inputs; grad_in<i> their gradients
<op>/<case>/out           its result; grad_out the gradient that comes in
model/<name>/images, labels
model/<name>/params       their values one after another, drawn at random, the head included
model/<name>/logits, loss the scores, and their mean cross-entropy
model/<name>/grads, grad_images       its gradients, by the parameters likewise
"""

import json
from pathlib import Path

import numpy as np

import baselines

if __name__ == "__main__":  # pytest imports all files here, where there may be no PyTorch
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)  # one order of summation
    torch.use_deterministic_algorithms(True)


def rounded(values):
    """float64 numbers that float32 can hold."""
    return values.astype(np.float32).astype(np.float64)


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


# ---- operations ---------------------------------------------------------------------------------


def same_pads(size, kernel, stride):
    """TensorFlow's "SAME": what is missing for ceil(size / stride) windows, the odd one last."""
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def padded(x, kernel, stride, padding, value=0.0):
    """x (B, channels, H, W)"""
    if padding != "same":
        return F.pad(x, (padding,) * 4, value=value)
    rows, columns = (same_pads(n, kernel, stride) for n in x.shape[2:])
    return F.pad(x, (*columns, *rows), value=value)


def conv2d(x, weight, kernel, stride, padding):
    weight = weight.reshape(kernel, kernel, x.shape[3], -1).permute(3, 2, 0, 1)
    if padding == "same":
        return nhwc(F.conv2d(padded(nchw(x), kernel, stride, padding), weight, stride=stride))
    return nhwc(F.conv2d(nchw(x), weight, stride=stride, padding=padding))


def max_pool(x, kernel, stride, padding, fill=None):
    if fill is None:
        return nhwc(F.max_pool2d(nchw(x), kernel, stride, padding))
    return nhwc(F.max_pool2d(padded(nchw(x), kernel, stride, padding, fill), kernel, stride))


def group_norm(x, gamma, beta, groups, relu, epsilon=1e-5):
    y = nhwc(F.group_norm(nchw(x), groups, gamma, beta, epsilon))
    return F.relu(y) if relu else y


def weight_standardize(weight, epsilon=1e-10):
    """As in BiT's code, where the weight is (out, in, kernel, kernel)."""
    variance, mean = torch.var_mean(weight, dim=0, keepdim=True, unbiased=False)
    return (weight - mean) / torch.sqrt(variance + epsilon)


def attention(qkv, heads):
    tokens, batch, width = qkv.shape
    q, k, v = (
        part.reshape(tokens, batch, heads, -1).permute(1, 2, 0, 3) for part in qkv.chunk(3, dim=2)
    )
    y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, S, d)
    return y.permute(2, 0, 1, 3).reshape(tokens, batch, width // 3)


def softmax(z):
    return F.softmax(z, dim=-1)


def operation_cases(rng):
    """(operation, case, inputs, options)"""
    normal = rng.standard_normal
    yield softmax, "rows", [2 * normal((2, 3, 5))], {}
    yield attention, "three heads", [normal((5, 2, 18))], {"heads": 3}
    for kernel, stride, padding in ((3, 1, 1), (3, 2, "same"), (5, 2, 2), (1, 2, 0)):
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        inputs = [normal((2, 6, 5, 2)), normal((kernel**2 * 2, 3))]
        yield conv2d, f"{kernel} {stride} {padding}", inputs, options
    ties = np.maximum(np.round(normal((2, 6, 5, 2))), 0)  # many equal ones in each window
    options = {"kernel": 3, "stride": 2, "padding": 1}
    yield max_pool, "ties", [ties], options
    yield max_pool, "zeros around", [normal((2, 5, 6, 2))], options | {"fill": 0.0}
    for groups, relu in ((1, False), (3, True)):
        inputs = [1 + normal((2, 3, 2, 6)), 1 + 0.3 * normal(6), 0.3 * normal(6)]
        yield group_norm, f"{groups} {relu}", inputs, {"groups": groups, "relu": relu}
    yield weight_standardize, "matrix", [0.5 + normal((9, 4))], {}


def store_operation(operation, inputs, options, rng):
    tensors = [torch.tensor(rounded(value), requires_grad=True) for value in inputs]
    out = operation(*tensors, **options)
    grad_out = torch.tensor(rounded(rng.standard_normal(out.shape)))
    out.backward(grad_out)
    stored = {"out": out, "grad_out": grad_out.float()}
    for i, tensor in enumerate(tensors):
        assert tensor.grad.abs().max() > 1e-3
        stored |= {f"in{i}": tensor.float(), f"grad_in{i}": tensor.grad}
    return stored


# ---- models -------------------------------------------------------------------------------------


def vit(p, x, config, body=None):
    """x (B, H, W, in), or with `body` its feature map."""
    channels, patch = config["hidden_dim"], config["patch_size"]
    if body is not None:
        x = body(p, x, config)
    kernel = p["stem.weight"].reshape(patch, patch, -1, channels).permute(3, 2, 0, 1)
    x = F.conv2d(nchw(x), kernel, p["stem.bias"], stride=patch).flatten(2).transpose(1, 2)
    if config["pool"] == "token":
        x = torch.cat([p["class_token"].expand(len(x), 1, channels), x], dim=1)  # (B, S, C)
    x = x + p["positions"]
    for i in range(config["num_blocks"]):
        q = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items()}
        h = F.layer_norm(x, (channels,), q["norm1.weight"], q["norm1.bias"], 1e-6)
        # multi_head_attention_forward takes tokens first and (out, in) weights
        h, _ = F.multi_head_attention_forward(
            *[h.transpose(0, 1)] * 3, channels, config["num_heads"],
            q["attention.qkv.weight"].T, q["attention.qkv.bias"], None, None, False, 0.0,
            q["attention.out.weight"].T, q["attention.out.bias"], need_weights=False,
        )  # fmt: skip
        x = x + h.transpose(0, 1)
        h = F.layer_norm(x, (channels,), q["norm2.weight"], q["norm2.bias"], 1e-6)
        h = F.gelu(h @ q["mlp.w1"] + q["mlp.b1"], approximate=config["approximate"])
        x = x + h @ q["mlp.w2"] + q["mlp.b2"]
    x = F.layer_norm(x, (channels,), p["norm.weight"], p["norm.bias"], 1e-6)
    x = x[:, 0] if config["pool"] == "token" else x.mean(1)
    return x @ p["head.weight"] + p["head.bias"]


def resnet_body(p, x, config):
    """As BiT's: root, max pool after padding with zeros, pre-activation bottlenecks, norm, ReLU."""
    groups = config["groups"]

    def conv(x, name, kernel=1, stride=1):
        return conv2d(x, weight_standardize(p[f"body.{name}.weight"]), kernel, stride, kernel // 2)

    def norm(x, name):
        return group_norm(x, p[f"body.{name}.weight"], p[f"body.{name}.bias"], groups, True)

    imagenet = config["stem"] == "imagenet"
    x = conv(x, "root", *((7, 2) if imagenet else (3, 1)))
    x = max_pool(x, 3, 2, 1, 0.0) if imagenet else x
    for i, count in enumerate(config["block_counts"]):
        for j in range(count):
            block, stride = f"stages.{i}.{j}", 2 if i and not j else 1
            h = norm(x, f"{block}.norm1")
            skip = conv(h, f"{block}.projection", 1, stride) if not j else x
            h = norm(conv(h, f"{block}.conv1"), f"{block}.norm2")
            h = norm(conv(h, f"{block}.conv2", 3, stride), f"{block}.norm3")
            x = skip + conv(h, f"{block}.conv3")
    return norm(x, "norm")


def resnet(p, x, config):
    return resnet_body(p, x, config).mean((1, 2)) @ p["head.weight"] + p["head.bias"]


VIT = {
    "class": "ViT", "image_size": [6, 4], "patch_size": 2, "in_channels": 3, "num_classes": 5,
    "num_blocks": 2, "hidden_dim": 4, "mlp_dim": 7, "num_heads": 2, "approximate": "tanh",
}  # fmt: skip
RESNET = {
    "class": "ResNet", "image_size": [7, 6], "in_channels": 2, "num_classes": 5,
    "block_counts": [1], "width": 3, "stem": "small", "groups": 1,
}  # fmt: skip
HYBRID = {
    "class": "Hybrid", "image_size": [6, 4], "in_channels": 1, "num_classes": 3, "num_blocks": 1,
    "hidden_dim": 4, "mlp_dim": 5, "num_heads": 2, "block_counts": [1, 1], "width": 3,
    "stem": "small", "groups": 1, "patch_size": 1, "pool": "token", "approximate": "none",
}  # fmt: skip
MODELS = {
    "ViT, class token": VIT | {"pool": "token"},
    "ViT, mean": VIT | {"pool": "mean", "num_blocks": 1, "approximate": "none"},
    "ResNet": RESNET,
    "ResNet, large images": RESNET | {
        "image_size": [11, 8], "block_counts": [2], "width": 4, "stem": "imagenet", "groups": 2,
        "in_channels": 1,
    },
    "Hybrid": HYBRID,
}  # fmt: skip


def shapes_of(config):
    """By the parameters' names, in their order in the model of examples/."""
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    kind = getattr(baselines, arguments.pop("class"))
    return {name: value.shape for name, value in kind(**arguments).state_dict().items()}


def scores(p, x, config):
    if config["class"] == "ResNet":
        return resnet(p, x, config)
    return vit(p, x, config, resnet_body if config["class"] == "Hybrid" else None)


def store_model(config, rng):
    p = {}
    for name, shape in shapes_of(config).items():
        value = rng.standard_normal(shape)
        value = value / np.sqrt(shape[0]) if len(shape) == 2 else 0.3 * value
        value += "norm" in name and name.endswith("weight")
        p[name] = torch.tensor(rounded(value), requires_grad=True)
    images = rounded(rng.standard_normal((3, *config["image_size"], config["in_channels"])))
    labels = rng.integers(0, config["num_classes"], 3)
    x = torch.tensor(images, requires_grad=True)
    logits = scores(p, x, config)
    loss = F.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    assert logits.abs().min() > 1e-3 and x.grad.abs().max() > 1e-3
    for name, value in p.items():
        assert value.grad.abs().max() > 1e-5, name
    stored = {"images": images.astype("f4"), "labels": labels}
    stored |= {"logits": logits, "loss": loss, "grad_images": x.grad}
    stored["params"] = torch.cat([value.flatten() for value in p.values()]).float()
    return stored | {"grads": torch.cat([value.grad.flatten() for value in p.values()])}


def main():
    arrays, about = {}, {}

    def store(prefix, values):
        for key, value in values.items():
            value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            assert np.all(np.isfinite(value))
            arrays[f"{prefix}/{key}"] = value

    rng = np.random.default_rng(2010_11929)
    for operation, case, inputs, options in operation_cases(rng):
        about[f"{operation.__name__}/{case}"] = options
        stored = store_operation(operation, inputs, options, rng)
        store(f"{operation.__name__}/{case}", stored)
    for name, config in MODELS.items():
        about[f"model/{name}"] = config | {"shapes": shapes_of(config)}
        store(f"model/{name}", store_model(config, rng))
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    path = Path(__file__).with_name("baselines_reference.npz")
    np.savez_compressed(path, **arrays)
    print(f"torch {torch.__version__}, numpy {np.__version__}: {len(arrays)} arrays, "
          f"{path.stat().st_size:,} bytes")  # fmt: skip


if __name__ == "__main__":
    main()
