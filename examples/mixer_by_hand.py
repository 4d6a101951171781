"""The whole MLP-Mixer (arXiv 2105.01601), forward and backward, by hand: NumPy and no engine.

Each image gets a score for each class. The loss L, one number, says how wrong the scores are. Its
gradient, the derivatives of L by all weights, says how to move them so that L falls: each a little
against its derivative. Training does that for one batch of images after another; how far a weight
is moved (by a rule named Adam) stands at the end. Here and on all pages dx (in this code `d_x`) is
short for dL/dx, and has x's shape. Where x reaches L on several ways, dx is the sum of their parts.

An image is cut into S patches; the stem makes C numbers of each, its channels: a row of X, a token.
A block mixes by two MLPs: a linear map to D numbers, the hidden units; a bend (GELU) of each; a map
back. Their matrices and vectors are the weights:

    U = X + W2 gelu(W1 LayerNorm(X))          token mixing, along columns: shared by all channels
    Y = U + gelu(LayerNorm(U) W3) W4          channel mixing, along rows: shared by all tokens

with biases; LayerNorm brings each row to mean 0 and variance 1. After N blocks come LayerNorm, the
mean over the tokens, and a linear layer to K scores, the head. To mix columns the paper transposes,
mixes rows and transposes back; so does this file. B is the number of images, P a patch's side. To
run it, first install the package: `pip install -e .` in the folder with README.md.
Next: tiny.py, where an engine finds the way back, and x is (S, B, C), which is never transposed.
"""

import argparse
import math
import time

import numpy as np


def init(rng, image_size, patch_size, in_channels, num_classes, num_blocks,
         hidden_dim, tokens_mlp_dim, channels_mlp_dim, dtype):  # fmt: skip
    """As the paper's authors begin: matrices are normal with variance 1 / inputs, so that numbers
    keep their size on the way (LeCun et al. 1998); biases and head are 0."""
    height, width = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    S, C = (height // patch_size) * (width // patch_size), hidden_dim
    D_S, D_C, K = tokens_mlp_dim, channels_mlp_dim, num_classes
    shapes = {"stem.weight": (patch_size**2 * in_channels, C), "stem.bias": (C,)}
    for block in (f"blocks.{i}" for i in range(num_blocks)):
        shapes |= {f"{block}.norm1.weight": (C,), f"{block}.norm1.bias": (C,)}
        shapes |= {f"{block}.token_mixing.w1": (S, D_S), f"{block}.token_mixing.b1": (D_S,)}
        shapes |= {f"{block}.token_mixing.w2": (S, D_S), f"{block}.token_mixing.b2": (S,)}
        shapes |= {f"{block}.norm2.weight": (C,), f"{block}.norm2.bias": (C,)}
        shapes |= {f"{block}.channel_mixing.w1": (C, D_C), f"{block}.channel_mixing.b1": (D_C,)}
        shapes |= {f"{block}.channel_mixing.w2": (D_C, C), f"{block}.channel_mixing.b2": (C,)}
    shapes |= {"norm.weight": (C,), "norm.bias": (C,), "head.weight": (C, K), "head.bias": (K,)}
    params = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or name == "head.weight":  # only LayerNorm's scale (gamma) starts at 1
            params[name] = np.full(shape, "norm" in name and "weight" in name, dtype)  # shape
            continue
        # Matrices are stored as (inputs, outputs), token mixing's w2 alone as (outputs, inputs): so
        # row s of both its matrices is for token s. In the formulas above w1 is W1^T, w2 is W2.
        fan_in = shape[1] if name.endswith("token_mixing.w2") else shape[0]
        z = rng.standard_normal(shape)  # shape
        while np.abs(z).max() > 2:  # truncated: what lies beyond 2 sigma is drawn again
            z = np.where(np.abs(z) > 2, rng.standard_normal(shape), z)  # shape
        # Cut at 2 sigma, the deviation is 0.8796...; divided by it, the variance is 1 / fan_in.
        params[name] = (z / (0.87962566 * math.sqrt(fan_in))).astype(dtype)  # shape
    return params


def layer_norm(x, gamma, beta):
    """Bring each token to mean 0 and variance 1 over its channels, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)  # (B, S, C)
    # A second pass over the data: mean(x^2) - mean(x)^2 loses its digits where the mean is large.
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # (B, S, 1)
    sigma = np.sqrt(variance + 1e-6)  # (B, S, 1)
    x_hat = centred / sigma  # (B, S, C)
    return gamma * x_hat + beta, (x_hat, sigma, gamma)  # (B, S, C)


def layer_norm_backward(cache, d_y):
    """x_hat_j = (x_j - mean) / sigma. As d sigma / d x_i = x_hat_i / C and d mean / d x_i = 1 / C,

        d x_hat_j / d x_i = ([i = j] - 1/C - x_hat_i x_hat_j / C) / sigma

    where [i = j] is 1 if i = j, else 0. Times dx_hat_j, summed over j, that is dx_i."""
    x_hat, sigma, gamma = cache
    d_gamma = (d_y * x_hat).sum(axis=(0, 1))  # (C,)
    d_x_hat = d_y * gamma  # (B, S, C)
    by_mean = d_x_hat.mean(axis=-1, keepdims=True)  # (B, S, 1)
    by_sigma = x_hat * (d_x_hat * x_hat).mean(axis=-1, keepdims=True)  # (B, S, C)
    d_x = (d_x_hat - by_mean - by_sigma) / sigma  # (B, S, C)
    return d_x, {"weight": d_gamma, "bias": d_y.sum(axis=(0, 1))}  # (B, S, C), (C,), (C,)


def gelu(u, approximate):
    """The bend: u Phi(u), and its slope; Phi(u) is the chance that a standard normal number is
    below u. Without a bend between them the two matrices of an MLP would be one, their product."""
    if approximate == "none":  # exactly, by the error function
        phi = 0.5 * (1 + np.vectorize(math.erf, [u.dtype])(u / math.sqrt(2)))  # (B, rows, D)
        density = np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)  # (B, rows, D): Phi'
    elif approximate == "tanh":  # the authors' form: Phi(u) = (1 + tanh k(u + a u^3)) / 2
        k, a = math.sqrt(2 / math.pi), 0.044715
        t = np.tanh(k * (u + a * u * u * u))  # (B, rows, D); u**3 is very slow in float32
        phi = 0.5 * (1 + t)  # (B, rows, D)
        density = 0.5 * (1 - t * t) * k * (1 + 3 * a * u * u)  # (B, rows, D): tanh' = 1 - tanh^2
    else:
        raise ValueError(f"gelu: approximate is {approximate!r}; it must be 'tanh' or 'none'")
    return u * phi, phi + u * density  # (B, rows, D)


def linear_backward(x, weight, d_y):
    """y_j = sum_i x_i weight_ij + bias_j in every row: x_i moves all y_j, and what they bring adds:
    d_x_i = sum_j d_y_j weight_ij, d_x = d_y weight^T. The rows' parts of d_weight add too."""
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])  # (B*rows, in or out)
    return d_y @ weight.T, rows.T @ d_rows, d_rows.sum(axis=0)  # (B, rows, in), (in, out), (out,)


def mlp(x, w1, b1, w2, b2, approximate):
    """Linear, GELU, Linear for each row of E numbers: a token's C; transposed, a channel's S."""
    hidden, slope = gelu(x @ w1 + b1, approximate)  # (B, rows, D)
    return hidden @ w2 + b2, (x, w1, hidden, slope, w2)  # (B, rows, E)


def mlp_backward(cache, d_y):
    """The chain rule from the last step to the first; GELU acts element by element."""
    x, w1, hidden, slope, w2 = cache
    d_hidden, d_w2, d_b2 = linear_backward(hidden, w2, d_y)  # (B, rows, D), (D, E), (E,)
    d_x, d_w1, d_b1 = linear_backward(x, w1, d_hidden * slope)  # (B, rows, E), (E, D), (D,)
    return d_x, {"w1": d_w1, "b1": d_b1, "w2": d_w2, "b2": d_b2}


def forward(params, images, patch_size, approximate="tanh"):
    """Images (B, H, W, in) to logits, the scores (B, K), and what backward will need."""
    (B, H, W, channels), P = images.shape, patch_size
    cut = images.reshape(B, H // P, P, W // P, P, channels)  # (B, H/P, P, W/P, P, in)
    patches = cut.swapaxes(2, 3).reshape(B, -1, P * P * channels)  # (B, S, P*P*in)
    x = patches @ params["stem.weight"] + params["stem.bias"]  # (B, S, C)
    blocks = []
    while f"blocks.{len(blocks)}.norm1.weight" in params:
        prefix = f"blocks.{len(blocks)}."
        p = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        w1, b1, w2, b2 = (p[f"token_mixing.{name}"] for name in ("w1", "b1", "w2", "b2"))
        w3, b3, w4, b4 = (p[f"channel_mixing.{name}"] for name in ("w1", "b1", "w2", "b2"))
        h, norm1 = layer_norm(x, p["norm1.weight"], p["norm1.bias"])  # (B, S, C)
        h, token_mlp = mlp(h.swapaxes(1, 2), w1, b1, w2.T, b2, approximate)  # (B, C, S)
        u = x + h.swapaxes(1, 2)  # (B, S, C)
        h, norm2 = layer_norm(u, p["norm2.weight"], p["norm2.bias"])  # (B, S, C)
        h, channel_mlp = mlp(h, w3, b3, w4, b4, approximate)  # (B, S, C)
        x = u + h  # (B, S, C)
        blocks.append((norm1, token_mlp, norm2, channel_mlp))
    x, norm = layer_norm(x, params["norm.weight"], params["norm.bias"])  # (B, S, C)
    features = x.mean(axis=1)  # (B, C)
    logits = features @ params["head.weight"] + params["head.bias"]  # (B, K)
    return logits, (cut.shape, patches, blocks, norm, features)


def backward(params, cache, d_logits):
    """The gradient of every parameter and of the images, given that of the logits."""
    (B, down, P, across, _, channels), patches, blocks, norm, features = cache
    d_features, d_w, d_b = linear_backward(features, params["head.weight"], d_logits)  # (B, C)
    tree = {"head": {"weight": d_w, "bias": d_b}}  # (C, K), (K,)
    d_mean = d_features / (down * across)  # (B, C): each of the S tokens weighs 1/S in the mean
    d_x = np.repeat(d_mean[:, None, :], down * across, axis=1)  # (B, S, C)
    d_x, tree["norm"] = layer_norm_backward(norm, d_x)  # (B, S, C)
    for i, (norm1, token_mlp, norm2, channel_mlp) in reversed(list(enumerate(blocks))):
        # A sum hands its gradient to both terms: at the skips, U + ... and X + ..., two are added.
        d_h, tree[f"blocks.{i}.channel_mixing"] = mlp_backward(channel_mlp, d_x)  # (B, S, C)
        d_h, tree[f"blocks.{i}.norm2"] = layer_norm_backward(norm2, d_h)  # (B, S, C)
        d_u = d_x + d_h  # (B, S, C)
        # Token mixing's d_b2 is 0, up to rounding: b2 adds one number to all channels of a token,
        # and every LayerNorm on the way to the scores takes off their mean.
        d_h, d_token = mlp_backward(token_mlp, d_u.swapaxes(1, 2))  # (B, C, S)
        tree[f"blocks.{i}.token_mixing"] = d_token | {"w2": d_token["w2"].T}  # w2: (S, D_S)
        d_h, tree[f"blocks.{i}.norm1"] = layer_norm_backward(norm1, d_h.swapaxes(1, 2))  # (B, S, C)
        d_x = d_u + d_h  # (B, S, C)
    d_patches, d_w, d_b = linear_backward(patches, params["stem.weight"], d_x)  # (B, S, P*P*in)
    tree["stem"] = {"weight": d_w, "bias": d_b}  # (P*P*in, C), (C,)
    grads = {f"{part}.{name}": g for part in tree for name, g in tree[part].items()}
    d_cut = d_patches.reshape(B, down, across, P, P, channels)  # (B, H/P, W/P, P, P, in)
    return grads, d_cut.swapaxes(2, 3).reshape(B, down * P, across * P, channels)  # (B, H, W, in)


def cross_entropy(logits, labels):
    """The mean of -log p[label], and its gradient. p is softmax(logits), e^logits divided by their
    sum: positive numbers that add up to 1, read as probabilities."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # (B, K): exp cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (B, K)
    one_hot = np.eye(logits.shape[1], dtype=logits.dtype)[labels]  # (B, K)
    return -(one_hot * log_p).sum() / len(labels), (np.exp(log_p) - one_hot) / len(labels)  # (B, K)


def main():
    from minimixer import data

    parser = argparse.ArgumentParser(description="Train a small Mixer on 10,000 digits.")
    parser.add_argument("--epochs", type=int, default=10, choices=range(1, 1001), metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="initial weights and order of images")
    args = parser.parse_args()
    # MNIST: 60,000 handwritten digits to learn from and 10,000 to test with, 28 x 28 pixels each.
    train_images, train_labels, test_images, test_labels = data.load_mnist()
    images = (train_images[:10_000].astype(np.float32) / 255 - 0.5) / 0.5  # (10000, 28, 28, 1)
    test_images = (test_images.astype(np.float32) / 255 - 0.5) / 0.5  # (10000, 28, 28, 1)
    rng, start, P = np.random.default_rng(args.seed), time.perf_counter(), 7
    params = init(rng, 28, P, 1, 10, 3, 64, 32, 128, np.float32)  # N 3, C 64, D_S 32, D_C 128
    # Adam moves a weight by the running mean of its gradient g, over the root of that of g^2.
    m = {name: np.zeros_like(value) for name, value in params.items()}
    v = {name: np.zeros_like(value) for name, value in params.items()}
    for epoch in range(args.epochs):
        batches = rng.permutation(10_000).reshape(100, 100)  # (100, B)
        for step, batch in enumerate(batches, start=100 * epoch + 1):
            logits, cache = forward(params, images[batch], P)  # (B, K)
            loss, d_logits = cross_entropy(logits, train_labels[batch])  # (), (B, K)
            grads, _ = backward(params, cache, d_logits)
            learning_rate = 4e-3 * (1 - step / (100 * args.epochs + 1))  # smaller and smaller
            for name, g in grads.items():
                m[name] = 0.9 * m[name] + 0.1 * g  # shape of g
                v[name] = 0.999 * v[name] + 0.001 * g * g  # shape of g
                # Both began at 0: after t steps they are too small by 1 - 0.9^t and 1 - 0.999^t.
                m_hat, v_hat = m[name] / (1 - 0.9**step), v[name] / (1 - 0.999**step)  # shape of g
                params[name] -= learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)  # shape of g
        parts = [forward(params, part, P)[0] for part in np.split(test_images, 20)]  # (500, K)
        accuracy = (np.concatenate(parts).argmax(axis=1) == test_labels).mean()  # ()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, test accuracy {accuracy:.2%}")
    print(f"final test accuracy {accuracy:.2%} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
