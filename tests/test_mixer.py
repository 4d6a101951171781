"""The model: its gradients, its architecture, its figure, and what can be done with it."""

import itertools
import math
import re
import warnings

import numpy as np
import pytest
import test_oracles as oracles
from help import changed, same_state
from hypothesis import given
from hypothesis import strategies as st
from processes import quick
from strategies import reference_functions
from test_oracles import SMALL, Case, cases, check_by_hand, examples, redraw, results_of

from minimixer import GradientError, Mixer, Tensor, backend, gradcheck, nn, no_grad
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.model import inputs as inputs_module
from minimixer.model import mixer as mixer_module
from minimixer.model.images import to_tokens
from minimixer.model.mixer import MixerBlock, MixerMLP
from minimixer.model.variants import VARIANTS
from minimixer.nn import StochasticDepth
from minimixer.nn.layers import lecun_normal


def small(device: str, dtype: str = "float64", **changes) -> Mixer:
    """SMALL with every parameter at random."""
    return redraw(Mixer(**SMALL | changes, dtype=dtype).to(device), seed=1)


def random_images(batch: int = 3, **changes) -> np.ndarray:
    return Case(SMALL | changes, batch, seed=2).images()


def bits(array) -> bytes:
    return to_numpy(array.data if isinstance(array, Tensor) else array).tobytes()


# ---- gradients against finite differences --------------------------------------------------------


def check_gradients(model: Mixer, images: np.ndarray, directions: int | None = None) -> None:
    """Every parameter and the images; first, that there is something to check."""
    x = Tensor(images, requires_grad=True, device=model.device)
    parameters = model.parameters()
    assert gradcheck(lambda images, *_: model(images), [x, *parameters], directions=directions)
    assert abs(model(x).data).max() > 1e-3
    gradients = {name: abs(p.grad).max() for name, p in model.named_parameters()}
    gradients["images"] = abs(x.grad).max()
    largest = max(gradients.values())
    for name, size in gradients.items():
        assert oracles.has_no_gradient(name) or size > 1e-9 * largest, f"{name} was compared with 0"


@pytest.mark.parametrize("directions, cpu, cuda", [(None, 7, 1), (2, 15, 3)])
def test_any_mixer_against_finite_differences(device, directions, cpu, cuda):
    """A tiny one element by element, another along random directions."""

    @examples(device, cpu, cuda)
    @given(cases(tiny=directions is None))
    def check(case):
        check_gradients(case.model(device), case.images(), directions)

    check()


def test_frozen_parameters_get_no_gradient_and_change_no_other(device):
    @examples(device, cpu=25, cuda=3)
    @given(cases(), st.data())
    def check(case, data):
        model = case.model(device)
        expected = results_of(model, case.images(), case.labels())
        names = [name for name, _ in model.named_parameters()]
        frozen = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=len(names) - 1))
        model = case.model(device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name not in frozen
        loss = F.cross_entropy(model(case.images()), to_device(case.labels(), device))
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in frozen:
                assert parameter.grad is None
            else:
                assert bits(parameter.grad) == expected[name].tobytes(), name

    check()


def test_the_gradient_of_the_last_token_mixing_bias_is_zero_and_no_other(device):
    """A constant added to all channels of a token is gone after the next LayerNorm."""
    for seed in range(5):
        case = Case(SMALL | {"num_blocks": 3}, batch=4, seed=seed)
        found = results_of(case.model(device), case.images(), case.labels())
        largest = oracles.gradient_size(found)
        zero = {name for name, g in found.items() if abs(g).max() < 1e-13 * largest}
        assert zero == {f"blocks.{i}.token_mixing.b2" for i in range(3)}


# ---- planted mistakes: would the checks notice? --------------------------------------------------


OTHER_FORM = {"tanh": "none", "none": "tanh"}


def instead_of(owner, name):
    """A mistake: the decorated function in the place of `owner.name`, which it is given first."""

    def mistake(wrong):
        def plant(monkeypatch):
            right = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *inputs, **o: wrong(right, *inputs, **o))

        return plant

    return mistake


built = instead_of(MixerBlock, "__init__")


@built
def share_layer_norm(init, self, *sizes):
    init(self, *sizes)
    self.norm2 = self.norm1


def block(first, second):
    """A MixerBlock whose two halves are first(self, x) and second(self, x)."""
    return instead_of(MixerBlock, "forward")(lambda right, self, x: second(self, first(self, x)))


def right_tokens(self, x):
    return x + self.token_mixing(self.norm1(x))


def right_channels(self, x):
    return x + self.channel_mixing(self.norm2(x))


def skip_from_the_norm(self, x):
    """The residual is taken after LayerNorm instead of before."""
    h = self.norm1(x)
    return h + self.token_mixing(h)


@instead_of(Mixer, "trunk")
def drop_last_layer_norm(right, self, images):
    x = self.stem(self.patches(images))
    for block in self.blocks:
        x = block(x)
    return x


@instead_of(nn.LayerNorm, "__init__")
def epsilon_1e_5(init, self, channels):
    init(self, channels, epsilon=1e-5)


def other_gelu(*axes):
    """In the MLPs along these axes."""

    @instead_of(MixerMLP, "__init__")
    def wrong(init, self, size, hidden, axis, form):
        init(self, size, hidden, axis, OTHER_FORM[form] if axis in axes else form)

    return wrong


@instead_of(F, "gelu_and_slope")
def slope_of_the_other_gelu(right, x, approximate, want_slope, **options):
    _, its_slope = right(x.copy(), OTHER_FORM[approximate], want_slope)
    return right(x, approximate, want_slope, **options)[0], its_slope


def forget_last_bias(axis):
    @instead_of(MixerMLP, "forward")
    def forgetful(right, self, x):
        bias = self.b2.reshape(-1, 1, 1) if axis == 0 else self.b2
        return right(self, x) - bias if self.axis == axis else right(self, x)

    return forgetful


@instead_of(Tensor, "mean")
def sum_over_tokens(mean, self, axis):
    return self.sum(axis)


@instead_of(Mixer, "patches")
def columns_first(patches, self, images):
    """Patches in (column, row) order."""
    x = patches(self, images)
    rows, columns = self.height // self.patch_size, self.width // self.patch_size
    return x.reshape(rows, columns, *x.shape[1:]).transpose(1, 0, 2, 3).reshape(*x.shape)


@instead_of(Mixer, "patches")
def channels_before_pixels(patches, self, images):
    """Each patch flattened in (channel, row, column) order, as PyTorch's layout has it."""
    x = patches(self, images)
    pixels = x.reshape(*x.shape[:2], -1, self.in_channels)
    return pixels.transpose(0, 1, 3, 2).reshape(*x.shape)


@instead_of(F, "layer_norm")
def tokens_norm(right, x, gamma, beta, epsilon):
    """LayerNorm's statistics over the tokens of all, not over a token's channels."""
    s = x - x.mean(axis=0, keepdims=True)
    x_hat = s / ((s * s).mean(axis=0, keepdims=True) + epsilon).sqrt()
    return x_hat * gamma + beta


PLANTED = {
    "D_S and D_C swapped": built(lambda init, m, s, c, ds, dc, *rest: init(m, s, c, dc, ds, *rest)),
    "D_S = S": built(lambda init, m, s, c, ds, *rest: init(m, s, c, s, *rest)),
    "one LayerNorm shared by both MLPs": share_layer_norm,
    "the first LayerNorm used twice": block(
        right_tokens, lambda m, x: x + m.channel_mixing(m.norm1(x))
    ),
    "no last LayerNorm": drop_last_layer_norm,
    "epsilon 1e-5": epsilon_1e_5,
    "the other GELU": other_gelu(0, -1),
    "the other GELU for tokens": other_gelu(0),
    "the other GELU for channels": other_gelu(-1),
    "GELU of one form, slope of the other": slope_of_the_other_gelu,
    "no skip around token mixing": block(lambda m, x: m.token_mixing(m.norm1(x)), right_channels),
    "no skip around channel mixing": block(right_tokens, lambda m, x: m.channel_mixing(m.norm2(x))),
    "skip from after LayerNorm": block(skip_from_the_norm, right_channels),
    "no last bias in token mixing": forget_last_bias(0),
    "no last bias in channel mixing": forget_last_bias(-1),
    "sum instead of mean": sum_over_tokens,
    "patches column by column": columns_first,
    "channels before pixels in a patch": channels_before_pixels,
    "LayerNorm over tokens": tokens_norm,
}
# These change names or shapes, so that the count of parameters, or loading them, shows it.
IN_THE_SHAPES = {"D_S and D_C swapped", "D_S = S", "one LayerNorm shared by both MLPs"}
# Adding a constant to each channel of a token changes no logit and no other gradient.
NOT_IN_THE_RESULTS = {"no last bias in token mixing"}


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistakes_are_noticed(device, monkeypatch, reference, mistake, approximate):
    case = Case(SMALL | {"approximate": approximate}, batch=4, seed=0)

    def check_all():
        yield lambda: oracles.check_shapes_by_hand(Mixer(**case.config))
        yield lambda: check_by_hand(case.model(device), case.images(), case.labels())
        yield lambda: oracles.check_torch(oracles.torch_model(device, approximate))

    for check in check_all():
        check()  # without the mistake all pass
    PLANTED[mistake](monkeypatch)
    by_shapes, by_hand, by_torch = check_all()
    if mistake in IN_THE_SHAPES:
        with pytest.raises(AssertionError):
            by_shapes()
        with pytest.raises(ValueError, match="load_state_dict"):
            by_torch()
    else:
        by_shapes()
    if mistake in NOT_IN_THE_RESULTS:
        by_hand()
    elif mistake not in {"D_S and D_C swapped", "D_S = S"}:  # by hand, the state's shapes decide
        with pytest.raises(AssertionError):
            by_hand()
        if mistake not in IN_THE_SHAPES:
            with pytest.raises(AssertionError):
                by_torch()


def test_a_wrong_slope_is_noticed_by_finite_differences(device, monkeypatch, reference):
    check_gradients(small(device), random_images(), directions=2)
    slope_of_the_other_gelu(monkeypatch)
    with pytest.raises(GradientError):
        check_gradients(small(device), random_images(), directions=2)


# ---- how many parameters -------------------------------------------------------------------------

# PAPER.md: body, with a 1000-class head, with a 21843-class head, 10^9 multiply-accumulates
COUNTS = {
    "mixer_s32": (18_591_624, 19_104_624, 29_797_083, 1.002),
    "mixer_s16": (18_015_264, 18_528_264, 29_220_723, 3.777),
    "mixer_b32": (59_524_428, 60_293_428, 76_321_695, 3.238),
    "mixer_b16": (59_111_472, 59_880_472, 75_908_739, 12.602),
    "mixer_l32": (205_914_264, 206_939_264, 228_303_339, 11.253),
    "mixer_l16": (207_171_168, 208_196_168, 229_560_243, 44.548),
    "mixer_h14": (431_069_952, 432_350_952, 459_050_835, 120.990),
}


def test_parameters_and_multiplications_of_the_variants():
    assert COUNTS.keys() == VARIANTS.keys()
    for name, (body, with_1000, with_21843, gmacs) in COUNTS.items():
        table = Mixer.summary_of(name)
        assert table.parameters == Mixer.summary_of(name, num_classes=1000).parameters == with_1000
        assert Mixer.summary_of(name, num_classes=21843).parameters == with_21843
        assert sum(row.parameters for row in table.rows if row.name != "head") == body
        assert f"{table.macs / 1e9:.3f}" == f"{gmacs:.3f}"


@pytest.mark.parametrize("name", quick(list(COUNTS)[:4], "mixer_s32", "mixer_s16"))
def test_parameters_of_real_models(name, device):
    """The table above is made without a model."""
    model = Mixer.from_name(name, num_classes=1000, seed=None).to(device)
    assert model.num_parameters() == sum(p.size for p in model.parameters()) == COUNTS[name][1]


@pytest.mark.slow
def test_a_real_variant_agrees_with_the_mixer_by_hand(device):
    model = Mixer.from_name("mixer_s32", dtype="float64").to(device)
    redraw(model, seed=0)
    images = np.random.default_rng(1).standard_normal((2, 224, 224, 3))
    check_by_hand(model, images, np.array([3, 999]))


# ---- the order of patches and of pixels does not matter ------------------------------------------


def cut(images: np.ndarray, p: int) -> np.ndarray:
    """(B, H, W, in) -> (B, S, P * P, in)"""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, p * p, channels)


def join(patches: np.ndarray, height: int, width: int, p: int) -> np.ndarray:
    batch, _, _, channels = patches.shape
    x = patches.reshape(batch, height // p, width // p, p, p, channels).swapaxes(2, 3)
    return x.reshape(batch, height, width, channels)


@pytest.mark.parametrize("what", ["patches", "pixels", "both"])
def test_logits_do_not_depend_on_the_order_of_patches_and_pixels(device, what):
    @examples(device, cpu=15, cuda=3)
    @given(cases())
    def check(case):
        model = case.model(device)
        images, p = case.images(), model.patch_size
        rng = np.random.default_rng(case.seed)
        patches = cut(images, p)
        assert (join(patches, model.height, model.width, p) == images).all()
        tokens = rng.permutation(patches.shape[1])
        pixels = rng.permutation(patches.shape[2])
        if what in ("patches", "both"):
            patches = patches[:, tokens]
        if what in ("pixels", "both"):
            patches = patches[:, :, pixels]
        shuffled = join(patches, model.height, model.width, p)
        state = model.state_dict()
        if what in ("patches", "both"):
            for name in state:
                if name.endswith(("token_mixing.w1", "token_mixing.w2", "token_mixing.b2")):
                    state[name] = state[name][tokens]
        if what in ("pixels", "both"):
            weight = state["stem.weight"].reshape(p * p, model.in_channels, -1)
            state["stem.weight"] = weight[pixels].reshape(state["stem.weight"].shape)
        other = Mixer(**case.config, dtype="float64").to(device)
        other.load_state_dict(state)
        expected = to_numpy(model(images).data)
        found = to_numpy(other(shuffled).data)
        size = abs(expected).max()
        assert size > 1e-3 and abs(found - expected).max() <= 1e-10 * size

    check()


def test_shuffled_images_alone_do_change_the_logits(device):
    model, images = small(device), random_images()
    patches = cut(images, model.patch_size)
    expected = to_numpy(model(images).data)
    for shuffled in (patches[:, ::-1], patches[:, :, ::-1]):
        found = model(join(shuffled, model.height, model.width, model.patch_size))
        assert abs(to_numpy(found.data) - expected).max() > 1e-2


# ---- initial weights -----------------------------------------------------------------------------


def test_a_new_model_says_zero_and_only_its_head_can_learn(device):
    model = Mixer(**SMALL).to(device)
    assert abs(model(random_images()).data).max() == 0
    labels = to_device(np.array([0, 1, 2]), device)
    F.cross_entropy(model(random_images()), labels).backward()
    for name, parameter in model.named_parameters():
        assert (abs(parameter.grad).max() > 0) == name.startswith("head"), name


def test_initial_weights_are_lecun_normal(device):
    """Of every matrix but the head's, the variance; test_nn.py has the distribution."""
    sizes = SMALL | {"hidden_dim": 60, "tokens_mlp_dim": 90, "channels_mlp_dim": 130}
    drawn = []
    model = Mixer(**sizes, seed=7).to(device)
    w2 = model.blocks[0].channel_mixing.w2  # the second matrix of its layer
    known = [lecun_normal(w2.shape, len(w2), 7, layer, number=1) for layer in range(9)]
    assert sum((to_numpy(w2.data) == values).all() for values in known) == 1
    for name, value in model.state_dict().items():
        if name.startswith("head") or value.ndim == 1:
            assert (value == ("norm" in name and name.endswith("weight"))).all(), name
            continue
        # the number of terms in each sum: token mixing's w2 is stored as (S, D_S), outputs first
        fan_in = value.shape[1] if name.endswith("token_mixing.w2") else value.shape[0]
        z = value.astype("float64").ravel() * math.sqrt(fan_in)
        assert value.dtype == np.float32 and 1.9 < abs(z).max() * 0.87962566 <= 2 + 1e-6
        assert abs((z**2).mean() - 1) < 5 / math.sqrt(z.size), name
        drawn.append(z)
    assert len(drawn) == 1 + 4 * 2
    for a, b in itertools.combinations(drawn, 2):  # no two of them from the same numbers
        n = min(a.size, b.size)
        for stride in (1, -1):
            assert abs(np.corrcoef(a[:n], b[:n][::stride])[0, 1]) < 5 / math.sqrt(n)


def test_seeds_repeat_and_differ(device):
    first, again, other = (Mixer(**SMALL, seed=seed).to(device) for seed in (0, 0, 1))
    state = first.state_dict()
    same_state(again, state)
    drawn = {n for n, v in state.items() if v.ndim == 2 and not n.startswith("head")}
    assert changed(other, state) == drawn
    assert (first.random.seed, other.random.seed) == (0, 1)
    model = Mixer(**SMALL, seed=None).to(device)
    assert not any(p.data.any() for p in model.parameters() if p.ndim == 2)
    assert model.random.seed == 0
    model.initialize(0)
    same_state(model, state)


# ---- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6)])
@pytest.mark.parametrize("mean, std", [
    ((0.1, 0.5, 0.9), (0.2, 0.5, 0.7)), (None, None), ((0, 0, 0), 1)
])  # fmt: skip
def test_bytes_are_scaled_by_mean_and_std_of_each_channel(device, dtype, tolerance, mean, std):
    """By default to -1 to 1."""
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3), dtype=np.uint8)
    images[0, 0, 0] = (0, 255, 1)
    before = images.copy()
    given = {} if mean is None else {"mean": mean, "std": std}
    expected = (images / 255 - np.array(given.get("mean", 0.5))) / np.array(given.get("std", 0.5))
    other = small(device, dtype)
    if mean:
        other.set_normalization(mean, std)
    for model in (small(device, dtype, **given), other):
        found = model.convert(to_device(images, device))
        assert (found.dtype, found.device) == (dtype, model.device)
        assert abs(to_numpy(found.data) - expected).max() < tolerance * abs(expected).max()
        assert (images == before).all()
        a, b = (to_numpy(model(x).data) for x in (images, expected))
        assert abs(a).max() > 1e-3 and abs(a - b).max() < 100 * tolerance * abs(a).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_taken_as_they_are(device, dtype):
    model = small(device, dtype, mean=0.3, std=0.1)
    for given_dtype in ("float32", "float64"):
        images = random_images().astype(given_dtype)
        before = images.copy()
        x = model.convert(images)
        assert x.dtype == dtype and bits(x) == images.astype(dtype).tobytes()
        assert model(images).dtype == dtype and (images == before).all()
    tensor = Tensor(random_images().astype(dtype), device=device)
    assert model.convert(tensor) is tensor
    with pytest.raises(ValueError):  # too large for float32
        small(device, "float32")(random_images() * 1e300)


def test_images_in_any_memory_layout(device):
    model = small(device)
    images = random_images()
    expected = bits(model(images))
    assert bits(model(np.asfortranarray(images))) == expected
    assert bits(model(images[::-1].copy()[::-1])) == expected
    images.flags.writeable = False
    assert bits(model(images)) == expected


def test_images_on_the_device_that_are_not_finite(device):
    """A kernel does not look at each number: the scores of that image are NaN instead."""
    images = random_images().astype("float32")
    images[1, 2, 3, 0] = math.nan
    model, images = small(device, "float32"), to_device(images, device)
    if backend.form_of(to_tokens, images) is None:
        with pytest.raises(ValueError, match="NaN or infinity"):
            model(images)
    else:
        scores = model(images).numpy()
        assert [i for i, row in enumerate(scores) if np.isnan(row).any()] == [1]
    with reference_functions(), pytest.raises(ValueError, match="NaN or infinity"):
        model(images)


@pytest.mark.parametrize("shape", [(2, 20, 12, 3), (2, 12, 20, 1), (2, 3, 12, 20)])
def test_images_of_another_shape(device, shape):
    """Whose sides are not equal; test_bad_input.py has the others."""
    for images in (np.zeros(shape), Tensor(np.zeros(shape), device=device)):
        with pytest.raises(ValueError, match=r"12, 20, 3.*" + re.escape(str(shape))):
            small(device)(images)


# ---- predicting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization, scale, shift, doubtful", [
    ((0.5, 0.5), 1 / 255, 0, True), ((0.5, 0.5), 1, 0, True), ((0.5, 0.5), 2 / 255, -1, False),
    ((0.5, 0.5), 1, -128, True), ((0.5, 0.5), 1 / 255, -0.5, False),
    ((0.1307, 0.3081), 1 / 255, 0, True), ((0.1307, 0.3081), 1, 0, True),
    ((0.1307, 0.3081), 1 / 255 / 0.3081, -0.1307 / 0.3081, False),
    ((0.0, 1.0), 1 / 255, 0, False), ((0.0, 1.0), 1, 0, True), ((0.0, 1 / 255), 1, 0, False),
])  # fmt: skip
def test_floats_that_are_not_normalised_are_doubted_once(
    device, normalization, scale, shift, doubtful
):
    """Where the model is asked for predictions; training and Tensors are left alone."""
    bytes_ = np.random.default_rng(0).integers(0, 256, (6, 12, 20, 3)).astype("uint8")
    bytes_[0, 0, 0], bytes_[0, 0, 1] = 0, 255
    for dtype in ("float32", "float64", "float16"):
        model = Mixer(**SMALL)
        model.set_normalization(*normalization)
        model.to(device)
        floats = to_device((bytes_.astype(dtype) * scale + shift).astype(dtype), device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(floats)
            model.predict(bytes_)
            model.predict(Tensor(floats.astype("float32")))
            assert not caught
            model.predict(floats)
            model.predict_proba(floats, batch_size=2)
        assert len(caught) == doubtful
        if doubtful:
            assert re.search(r"uint8.*\(x / 255 - mean\) / std", str(caught[0].message))


def test_predictions_do_not_depend_on_the_batch_size(device):
    model = small(device)
    images = random_images(batch=11)
    with no_grad():
        logits = to_numpy(model(images).data)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert np.ptp(logits) > 1e-2
    for batch_size in (1, 2, 4, 11, 256):
        found = model.predict_proba(images, batch_size=batch_size)
        assert type(found) is np.ndarray and found.dtype == np.float64 and found.shape == (11, 5)
        assert abs(found.sum(axis=1) - 1).max() < 1e-14
        assert abs(found - p).max() < 1e-12
        classes = model.predict(images, batch_size)
        assert classes.dtype == np.int64 and (classes == logits.argmax(axis=1)).all()
    assert bits(model.predict_proba(to_device(images, device))) == bits(model.predict_proba(images))
    one = small(device, num_classes=1)
    assert (one.predict_proba(images) == 1).all() and (one.predict(images) == 0).all()


@pytest.mark.parametrize("training", [True, False, "but for one block"])
def test_predicting_ignores_dropping_and_restores_the_mode(device, training):
    """Of each part: someone who trains only the head keeps the rest in eval mode, say."""
    model = small(device, stochastic_depth=0.5).train(bool(training))
    model.blocks[1].train(training is True)
    before = [m.training for _, m in model.named_modules()]
    images = random_images(batch=8)
    assert bits(model.predict_proba(images)) == bits(small(device).predict_proba(images))
    assert [m.training for _, m in model.named_modules()] == before
    with pytest.raises(ValueError):
        model.predict(images[:, :5])
    assert [m.training for _, m in model.named_modules()] == before
    assert all(p.grad is None for p in model.parameters())
    plain = small(device)  # without dropping the mode changes nothing
    assert bits(plain.train()(images)) == bits(plain.eval()(images))


# ---- stochastic depth ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 7])
def test_rates_grow_linearly_from_zero_to_the_last(num_blocks):
    model = Mixer(**SMALL | {"num_blocks": num_blocks}, stochastic_depth=0.3)
    rates = [(block.drop1.p, block.drop2.p) for block in model.blocks]
    expected = np.linspace(0, 0.3, num_blocks) if num_blocks > 1 else np.array([0.3])
    assert np.allclose(rates, expected[:, None], rtol=0, atol=1e-15)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_features_of_the_last_block_are_what_the_head_sees(device, rate):
    """With stochastic depth a block has added its bias itself, without it the norm does."""
    model = small(device, stochastic_depth=rate).train()
    model.random.set(3)
    images = random_images(6)
    last = model.features(images, [-1])[0]  # (B, S, C)
    h = F.layer_norm(last, model.norm.weight, model.norm.bias)
    scores, expected = to_numpy(model.head(h.mean(axis=1)).data), to_numpy(model(images).data)
    assert abs(expected).max() > 0.1
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    for number in (len(model.blocks), -1 - len(model.blocks), 0.5, "0"):
        with pytest.raises(IndexError, match=f"no block {number!r}, of {len(model.blocks)}"):
            model.features(images, [number])


def scaled(model: Mixer, block: int, tokens: float, channels: float) -> Mixer:
    """A copy in which what one block's two MLPs add, last biases included, is multiplied."""
    state = model.state_dict()
    for mixing, factor in (("token", tokens), ("channel", channels)):
        for name in ("w2", "b2"):
            state[f"blocks.{block}.{mixing}_mixing.{name}"] *= factor
    copy = Mixer(**model.config | {"stochastic_depth": 0.0}, dtype="float64").to(model.device)
    copy.load_state_dict(state)
    return copy


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_each_example_skips_what_a_block_adds_or_gets_it_scaled_up(device, rate):
    """With two blocks only the last one drops: each logit row is one of four known ones."""
    batch = 400
    model = small(device, stochastic_depth=rate)
    images = np.repeat(random_images(batch=1), batch, axis=0)
    choices = list(itertools.product((0, 1 / (1 - rate)), repeat=2))
    known = np.stack([to_numpy(scaled(model, 1, *c)(images[:1]).data)[0] for c in choices])
    plain = to_numpy(small(device)(images[:1]).data)[0]
    assert min(abs(a - b).max() for a, b in itertools.combinations(known, 2)) > 1e-3

    logits = to_numpy(model.train()(images).data)
    distance = abs(logits[:, None] - known).max(axis=2)  # (batch, 4)
    assert distance.min(axis=1).max() < 1e-12
    chosen = distance.argmin(axis=1)
    for number, (tokens, channels) in enumerate(choices):
        p = (rate if tokens == 0 else 1 - rate) * (rate if channels == 0 else 1 - rate)
        deviation = math.sqrt(batch * p * (1 - p))
        assert abs((chosen == number).sum() - batch * p) < 4 * deviation

    assert abs(to_numpy(model.eval()(images).data) - plain).max() < 1e-12


def test_draws_depend_on_step_seed_layer_and_example_only(device):
    model = small(device, stochastic_depth=0.5, num_blocks=3).train()
    images, random = random_images(batch=16), model.random
    first, whole = bits(model(images)), to_numpy(model(images).data)
    for start, kept in ((10, True), (0, False)):  # the second piece of a batch cut in two
        random.set(step=0, first_example=start)
        difference = abs(to_numpy(model(images[10:]).data) - whole[10:]).max()
        assert difference < 1e-12 if kept else difference > 1e-3
    for change in (lambda: random.set(step=1), lambda: setattr(random, "seed", 1)):
        change()
        assert bits(model(images)) != first
        random.seed = 0
        random.set(step=0)
        assert bits(model(images)) == first
    for _, part in model.named_modules():  # a part's parameters() does not number it anew
        part.parameters()
    assert bits(model(images)) == first
    layers = [m for _, m in model.named_modules() if isinstance(m, StochasticDepth) and m.p]
    x = Tensor(np.ones((1, 200, 1)), device=device)
    assert len(layers) == len({bits(layer(x)) for layer in layers}) == 4


@pytest.mark.parametrize("step", [1, 5])  # in which no layer drops all
def test_gradients_while_blocks_are_dropped(device, step):
    model = small(device, stochastic_depth=0.4, num_blocks=3).train()
    model.random.set(step)
    images = random_images(batch=6)
    plain = small(device, num_blocks=3)(images)
    assert abs(to_numpy(model(images).data) - to_numpy(plain.data)).max() > 1e-3
    check_gradients(model, images, directions=3)


# ---- what else a model can do --------------------------------------------------------------------


def test_arguments_of_a_model(device):
    assert Mixer(**SMALL | {"num_classes": 0}).head is None
    model = Mixer(**SMALL | {"image_size": 8}).to(device)  # one number means a square
    assert model.config["image_size"] == (8, 8) and model.class_names is None
    assert model(np.zeros((1, 8, 8, 3))).shape == (1, 5)
    assert Mixer(**SMALL, class_names=range(5)).class_names == ["0", "1", "2", "3", "4"]
    single, double = (Mixer(**SMALL, seed=4, dtype=d).to(device) for d in ("float32", "float64"))
    for m in (double, single.to("float64")):
        assert {p.dtype for p in m.parameters()} == {np.dtype("float64")}
    same_state(single, double.state_dict())


def test_from_name_with_changes(device):
    tiny = {"image_size": (64, 32), "hidden_dim": 8, "tokens_mlp_dim": 3, "channels_mlp_dim": 5}
    model = Mixer.from_name("mixer_s32", num_classes=10, in_channels=1, **tiny).to(device)
    assert model(np.zeros((2, 64, 32, 1), dtype=np.uint8)).shape == (2, 10)
    assert len(model.blocks) == 8 and model.stem.weight.shape == (32 * 32, 8)
    assert model.blocks[7].token_mixing.w1.shape == (2, 3)
    assert model.config["approximate"] == "tanh"
    assert len(Mixer.from_name("mixer_s32", num_blocks=1, approximate="none", **tiny).blocks) == 1


@pytest.mark.parametrize("changes", [
    {"num_blocks": 1}, {"patch_size": 12, "image_size": (12, 12)},  # S = 1: the patch is the image
    {"patch_size": 1, "image_size": (2, 3)}, {"in_channels": 1},
    {"tokens_mlp_dim": 1, "channels_mlp_dim": 1}, {"hidden_dim": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_smallest_sizes(device, changes, batch):
    case = Case(SMALL | changes, batch, seed=3)
    check_gradients(case.model(device), case.images(), directions=2)
    if changes.get("hidden_dim") != 2:  # there rows of x_hat are -1, 1 but for epsilon: ill-posed
        check_by_hand(case.model(device), case.images(), case.labels())


def test_one_channel_is_finite(device):
    """LayerNorm takes all from a single channel: x_hat is 0, and only beta goes on."""
    model = small(device, hidden_dim=1)
    model.norm.bias.data = np.array([0.7])
    found = results_of(model, random_images(), np.array([0, 1, 4]))
    assert all(np.isfinite(value).all() for value in found.values())
    expected = 0.7 * to_numpy(model.head.weight.data[0]) + to_numpy(model.head.bias.data)
    assert np.allclose(found["logits"], expected, rtol=1e-12)
    assert abs(found["images"]).max() == 0 and abs(found["head.weight"]).max() > 1e-3


def test_parameters_are_found_once_in_the_order_of_the_paper(device):
    model = small(device)
    names = [name for name, _ in model.named_parameters()]
    assert names == list(model.state_dict()) and len(names) == 12 * 2 + 6  # 12 N + 6, as the .npz
    layers = [name.rpartition(".")[0] for name in names]
    order = ["norm1", "token_mixing", "norm2", "channel_mixing"]
    blocks = [f"blocks.{i}.{part}" for i in range(2) for part in order]
    assert list(dict.fromkeys(layers)) == ["stem", *blocks, "norm", "head"]


# ---- the figure in mixer.py ----------------------------------------------------------------------

FIGURE = {  # all different, products too
    "image_size": (12, 20), "patch_size": 4, "in_channels": 3, "num_classes": 5, "num_blocks": 1,
    "hidden_dim": 7, "tokens_mlp_dim": 11, "channels_mlp_dim": 13,
}  # fmt: skip
LETTERS = {"B": 2, "H": 12, "W": 20, "in": 3, "P": 4, "S": 15, "C": 7, "D_S": 11, "D_C": 13, "K": 5}
# What happens in one forward, in order, and a word of the line that shows it.
EVENTS = [
    ("convert", "images"), ("patches", "patches"), ("linear", "stem"),
    ("norm", "LayerNorm"), ("linear", None), ("gelu", "token mixing: W1, GELU"), ("linear", "W2"),
    ("sum", "skip connection"), ("norm", "LayerNorm"), ("linear", None),
    ("gelu", "channel mixing: W3, GELU"), ("linear", "W4"), ("sum", "skip connection"),
    ("norm", "LayerNorm"), ("mean", "mean over"), ("linear", "head"),
]  # fmt: skip


def shapes_in(figure: str) -> list[tuple[str, tuple[int, ...]]]:
    """(text before the arrow, shape after it) of every line with an arrow, letters as numbers."""
    found = []
    for line in figure.splitlines():
        if "--> (" in line:
            text, shape = re.fullmatch(r"(.*)--> \(([^()]*)\).*", line).groups()
            sizes = [
                math.prod(LETTERS[x] for x in term.strip().split("*")) for term in shape.split(",")
            ]
            found.append((text, tuple(sizes)))
    return found


def shapes_in_reality(device: str, monkeypatch) -> list[tuple[str, tuple[int, ...]]]:
    events = []

    def record(owner, name, *kinds):
        right = getattr(owner, name)

        def recorded(*arguments, **options):
            result = right(*arguments, **options)
            values = result if isinstance(result, tuple) else (result,)
            events.extend((kind, value.shape) for kind, value in zip(kinds, values, strict=False))
            return result

        monkeypatch.setattr(owner, name, recorded)

    record(inputs_module, "normalize", "convert")
    record(Mixer, "patches", "patches")
    record(F, "linear", "linear")
    record(F, "linear_first", "linear")
    record(Tensor, "__add__", "sum")
    record(F, "layer_norm", "norm")
    record(F, "gelu", "gelu")
    record(Tensor, "mean", "mean")
    small(device, **FIGURE)(random_images(batch=LETTERS["B"], **FIGURE))
    monkeypatch.undo()
    return events


def check_figure(figure: str, events: list[tuple[str, tuple[int, ...]]]) -> None:
    assert [kind for kind, _ in events] == [kind for kind, _ in EVENTS]
    shown = [(word, shape) for (_, word), (_, shape) in zip(EVENTS, events, strict=True) if word]
    lines = shapes_in(figure)
    assert len(lines) == len(shown)
    for (text, in_figure), (word, real) in zip(lines, shown, strict=True):
        assert word in text, f"{text!r} should be about {word!r}"
        assert in_figure == real, f"{text!r}: the figure says {in_figure}, it is {real}"


def test_the_figure_shows_what_happens(device, monkeypatch, reference):
    sizes = [*LETTERS.values(), 48, LETTERS["B"] * LETTERS["C"], LETTERS["S"] * LETTERS["B"]]
    assert len(set(sizes)) == len(sizes)
    assert "S = (H / P) (W / P) tokens" in mixer_module.__doc__
    assert LETTERS["S"] == (LETTERS["H"] // LETTERS["P"]) * (LETTERS["W"] // LETTERS["P"])
    check_figure(mixer_module.__doc__, shapes_in_reality(device, monkeypatch))


def test_a_wrong_figure_is_noticed(monkeypatch, reference):
    events, figure = shapes_in_reality("cpu", monkeypatch), mixer_module.__doc__
    check_figure(figure, events)
    arrows = list(re.finditer(r"--> \(([^()]*)\)", figure))
    assert len(arrows) == 14
    wrong = []
    for arrow in arrows:
        before, after = figure[: arrow.start(1)], figure[arrow.end(1) :]
        terms = arrow[1].split(", ")
        for other in ([*terms[1:], terms[0]], terms[1:], ["D_C*C", *terms[1:]]):
            wrong.append(before + ", ".join(other) + after)
        wrong.append(before.rpartition("\n")[0] + "\n" + after.partition("\n")[2])  # no such line
    lines = figure.splitlines()
    norm = next(i for i, line in enumerate(lines) if "LayerNorm  " in line)
    lines[norm], lines[norm + 1] = lines[norm + 1], lines[norm]
    for text in (*wrong, "\n".join(lines)):
        with pytest.raises(AssertionError):
            check_figure(text, events)
