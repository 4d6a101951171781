"""An engine, gradients derived by hand, an MLP-Mixer and AdamW: one file of NumPy, five steps.

>>> x, labels = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1])
>>> w, b = Tensor(np.zeros((2, 2))), Tensor(np.zeros(2))
>>> cross_entropy(linear(x, w, b), labels).backward()
>>> w.grad
array([[ 0.5, -0.5],
       [ 0.5, -0.5]])

mixer_by_hand.py, the page before this one, spells out the way back through the whole network. Here
the program remembers what it did and finds that way itself: an operation knows its own step alone.
minimixer/ has each step in full; there an operation is a class, Function, whose `self` remembers.

    1  the engine                       engine/autograd.py, engine/backward.py, engine/tensor.py
    2  operations                       engine/ops.py, engine/rearrange.py; linear: nn/functional.py
    3  GELU, LayerNorm, cross-entropy   nn/functional.py, nn/layer_norm.py, nn/loss.py
    4  the Mixer                        model/images.py, block.py, mixer.py; nn/initial.py
    5  AdamW and the training loop      training/optim.py, training/data.py, training/loop.py

S tokens, B images, C channels, D_S and D_C hidden units, K classes, P x P pixels in a patch. With
`python examples/tiny.py` it learns to read more than 97 of 100 digits that it has never seen: all
that this takes is on this page. The package adds what makes it fast, safe and easy to use.
Next: the package, page by page in the order that the docstring of minimixer/__init__.py gives.
"""

import argparse
import itertools
import math

import numpy as np

# ---- 1: the engine ------------------------------------------------------------------------------


class Tensor:
    """An array and its gradient; of a result, also what it was made from, and its chain rule."""

    count = itertools.count()

    def __init__(self, data, inputs=(), chain_rule=None):
        self.data, self.inputs, self.chain_rule = data, inputs, chain_rule
        self.grad, self.number = None, next(Tensor.count)

    def backward(self):
        """Self is one number: add its gradient by each leaf (not computed) to the leaf's `grad`.

        What uses a result has a larger number. So, from the largest on, a gradient is complete when
        its turn comes, and each step is taken once; with no recursion, for Python's stack is short.
        """
        results, to_visit = set(), [self]
        while to_visit:
            y = to_visit.pop()
            if y.chain_rule and y not in results:
                results.add(y)
                to_visit += [x for x in y.inputs if isinstance(x, Tensor)]
        self.grad = np.ones_like(self.data)
        for y in sorted(results, key=lambda y: y.number, reverse=True):
            for x, dx in zip(y.inputs, y.chain_rule(y.grad), strict=True):
                if isinstance(x, Tensor):  # not `+=`: the array that came first may be shared
                    x.grad = dx if x.grad is None else x.grad + dx
            y.grad, y.inputs, y.chain_rule = None, (), None  # and what it remembered is free


def differentiable(forward):
    """An operation on Tensors, from one on arrays that returns its result and its chain rule: from
    dy, the gradient of the result, to those of all inputs. Inputs that are arrays are constants."""

    def apply(*inputs):
        y, chain_rule = forward(*[x.data if isinstance(x, Tensor) else x for x in inputs])
        return Tensor(y, inputs, chain_rule)

    return apply


# ---- 2: the operations, each with its chain rule ------------------------------------------------


@differentiable
def add(a, b):
    """y = a + b, of one shape: dy/da = dy/db = 1."""
    return a + b, lambda dy: (dy, dy)


@differentiable
def transpose(x):
    """y_ji = x_ij, so dx_ij = dy_ji."""
    return x.T, lambda dy: (dy.T,)


@differentiable
def mean_first(x):
    """y_m = sum_s x_sm / S over the first axis, so dx_sm = dy_m / S for every s."""
    return x.mean(axis=0), lambda dy: (np.broadcast_to(dy / len(x), x.shape),)


@differentiable
def linear(x, w, b):
    """y_mj = sum_i x_mi w_ij + b_j along the last axis, m being all others, so
    dx_mi = sum_j dy_mj w_ij, dw_ij = sum_m x_mi dy_mj; b is in every row: db_j = sum_m dy_mj."""
    rows = x.reshape(-1, len(w))  # (S, B, C) as S*B rows

    def chain_rule(dy):
        dy = dy.reshape(-1, len(b))
        return (dy @ w.T).reshape(x.shape), rows.T @ dy, dy.sum(axis=0)

    return (rows @ w + b).reshape(*x.shape[:-1], len(b)), chain_rule


@differentiable
def linear_first(x, w, b):
    """y_jm = sum_i w_ji x_im + b_j along the first axis: the same from the left."""
    columns = x.reshape(len(x), -1)  # (S, B, C) as B*C columns: the same memory, nothing moves

    def chain_rule(dy):
        dy = dy.reshape(len(b), -1)
        return (w.T @ dy).reshape(x.shape), dy @ columns.T, dy.sum(axis=1)

    return (w @ columns + b[:, None]).reshape(len(b), *x.shape[1:]), chain_rule


Tensor.__add__ = add

# ---- 3: GELU, LayerNorm, softmax cross-entropy --------------------------------------------------


@differentiable
def gelu(x):
    """y = x p, p = (1 + t) / 2 with t = tanh(k x (1 + a x^2)): p goes from 0 to 1 as x grows.
    dy/dx = p + x p', and as tanh' = 1 - tanh^2, p' = (1 - t^2) k (1 + 3 a x^2) / 2."""
    k, a = math.sqrt(2 / math.pi), 0.044715  # with which p is nearly the Phi of the page before
    t = np.tanh(k * x * (1 + a * x * x))

    def chain_rule(dy):
        return (dy * (1 + t + x * (1 - t * t) * k * (1 + 3 * a * x * x)) / 2,)

    return x * (1 + t) / 2, chain_rule


@differentiable
def layer_norm(x, gamma, beta):
    """y = gamma x_hat + beta, x_hat = (x - mean) / sigma, sigma^2 = variance + 1e-6, row by row.
    x_i moves x_hat_j directly, through the mean and through sigma: d x_hat_j / d x_i =
    ([i = j] - 1/C - x_hat_i x_hat_j / C) / sigma. With dx_hat = gamma dy that gives
    dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma; dgamma, dbeta sum all rows."""
    centred = x - x.mean(axis=-1, keepdims=True)
    sigma = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-6)
    x_hat = centred / sigma

    def chain_rule(dy):
        dx_hat = gamma * dy
        along = x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
        dx = (dx_hat - dx_hat.mean(axis=-1, keepdims=True) - along) / sigma
        return dx, (dy * x_hat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))

    return gamma * x_hat + beta, chain_rule


@differentiable
def cross_entropy(z, labels):
    """The mean over B rows of -log p_label, p = softmax(z): log(sum_k e^z_k) - z_label.
    The slope of the first term by z_k is e^z_k / sum_j e^z_j = p_k, so dz = (p - one_hot) / B."""
    z = z - z.max(axis=1, keepdims=True)  # p stays the same, and e^z can't overflow
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    one_hot = np.eye(z.shape[1], dtype=z.dtype)[labels]
    dz = (np.exp(log_p) - one_hot) / len(z)
    return -(one_hot * log_p).sum() / len(z), lambda dy: (dy * dz, None)  # None: of the labels


# ---- 4: the Mixer, tokens first: (S, B, C) ------------------------------------------------------


def token_mixing(x, w1, b1, w2, b2):
    """W2 gelu(W1 x) for each channel's S tokens. w1 = W1^T, w2 = W2: row s of both is token s's."""
    return linear_first(gelu(linear_first(x, transpose(w1), b1)), w2, b2)


def channel_mixing(x, w1, b1, w2, b2):
    """gelu(x W3) W4, W3 = w1, W4 = w2, with biases: the C channels of each token are mixed."""
    return linear(gelu(linear(x, w1, b1)), w2, b2)


def mixer(layers, images, P):
    """Images (B, H, W, in) to scores (B, K). Layers are as `initial_layers` makes them."""
    stem, *blocks, norm, head = layers.values()
    B, H, W, channels = images.shape
    x = images.reshape(B, H // P, P, W // P, P, channels).transpose(1, 3, 0, 2, 4, 5)
    x = linear(x.reshape(-1, B, P * P * channels), *stem)  # (S, B, C)
    for i in range(0, len(blocks), 4):
        norm1, mlp1, norm2, mlp2 = blocks[i : i + 4]
        x = x + token_mixing(layer_norm(x, *norm1), *mlp1)
        x = x + channel_mixing(layer_norm(x, *norm2), *mlp2)
    return linear(mean_first(layer_norm(x, *norm)), *head)


def initial_layers(rng, P, channels, S, C, D_S, D_C, N, K):
    """{name of a layer: its Tensors}, named and ordered as in the package, for N blocks.
    Matrices are normal with variance 1 / inputs, gamma is 1; biases and head are 0."""

    def normal(inputs, outputs):
        return rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)

    layers = {"stem": [normal(P * P * channels, C), np.zeros(C)]}
    for block in (f"blocks.{i}" for i in range(N)):
        w1, w2, w3, w4 = normal(S, D_S), normal(D_S, S).T, normal(C, D_C), normal(D_C, C)
        layers[f"{block}.norm1"] = [np.ones(C), np.zeros(C)]
        layers[f"{block}.token_mixing"] = [w1, np.zeros(D_S), w2, np.zeros(S)]
        layers[f"{block}.norm2"] = [np.ones(C), np.zeros(C)]
        layers[f"{block}.channel_mixing"] = [w3, np.zeros(D_C), w4, np.zeros(C)]
    layers |= {"norm": [np.ones(C), np.zeros(C)], "head": [np.zeros((C, K)), np.zeros(K)]}
    return {name: [Tensor(a.astype(np.float32)) for a in layer] for name, layer in layers.items()}


# ---- 5: AdamW and the training loop -------------------------------------------------------------


class AdamW:
    """Adam, as on the page before, and weight decay, which also draws matrices towards 0:
    w <- w - lr (m_hat / (sqrt(v_hat) + 1e-8) + decay w)."""

    def __init__(self, parameters, weight_decay, betas=(0.9, 0.999)):
        self.weight_decay, self.betas, self.t = weight_decay, betas, 0
        self.state = [(p, np.zeros_like(p.data), np.zeros_like(p.data)) for p in parameters]

    def step(self, lr):
        self.t, (b1, b2) = self.t + 1, self.betas
        for p, m, v in self.state:
            m += (1 - b1) * (p.grad - m)
            v += (1 - b2) * (p.grad * p.grad - v)
            m_hat, v_hat = m / (1 - b1**self.t), v / (1 - b2**self.t)
            decay = self.weight_decay if p.data.ndim == 2 else 0  # matrices alone
            p.data = p.data - lr * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * p.data)
            p.grad = None


def main():
    parser = argparse.ArgumentParser(description="Train a small Mixer on MNIST.")
    parser.add_argument("--steps", type=int, default=1500, help="of 64 images each")
    steps = parser.parse_args().steps
    if steps < 1:
        parser.error(f"--steps must be at least 1, got {steps}")
    from minimixer import data

    images, labels, test_images, test_labels = data.load_mnist()
    images, test_images = ((x.astype(np.float32) / 255 - 0.5) / 0.5 for x in (images, test_images))
    rng, P = np.random.default_rng(0), 7
    layers = initial_layers(rng, P, channels=1, S=16, C=64, D_S=32, D_C=128, N=2, K=10)
    optimizer = AdamW(itertools.chain(*layers.values()), weight_decay=0.05)
    for step in range(1, steps + 1):
        batch = rng.integers(len(images), size=64)  # (B,)
        loss = cross_entropy(mixer(layers, images[batch], P), labels[batch])
        loss.backward()
        optimizer.step(lr=4e-3 * (1 - step / (steps + 1)))  # falls to 0
        if step % 300 == 0 or step == steps:
            scores = [mixer(layers, part, P).data for part in np.split(test_images, 20)]
            accuracy = (np.concatenate(scores).argmax(axis=1) == test_labels).mean()
            print(f"step {step}: loss {loss.data:.4f}, test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
