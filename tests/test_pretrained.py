"""Weights from outside: the layouts, files that are damaged or hostile, other heads and sizes."""

import functools
import json
import pickle
import re
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from files_help import assert_refused, pack
from help import changed, close, redraw, same, same_state

from minimixer import AdamW, Mixer, no_grad
from minimixer import functional as F
from minimixer.backend import to_numpy
from minimixer.training.checkpoint import save_checkpoint
from minimixer.weights.arrays import LARGEST_HEADER
from minimixer.weights.freeze import freeze
from minimixer.weights.layouts import entries, to_theirs
from minimixer.weights.remake import remake

safetensors_numpy = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.filterwarnings("ignore:.*how images were prepared")  # but where it counts

# All sizes differ, so that no array fits where another belongs.
SIZES = {"image_size": 12, "patch_size": 4, "in_channels": 3, "num_classes": 5, "num_blocks": 2,
         "hidden_dim": 8, "tokens_mlp_dim": 7, "channels_mlp_dim": 11}  # fmt: skip
GELU = {"npz": "tanh", "timm": "none"}
each_layout = pytest.mark.parametrize("layout", GELU)
# What the authors' first files call it: other names, LayerNorms numbered among a block's parts.
OLDER = {
    r"^stem": "embedding", r"^pre_head_layer_norm": "Mixer/encoder_norm",
    r"^MixerBlock_": "Mixer/encoderblock_", r"LayerNorm_1": "LayerNorm_2",
    r"_mixing/Dense_0/(\w+)": r"_mixing_phase_0/\g<1>1",
    r"_mixing/Dense_1/(\w+)": r"_mixing_phase_0/\g<1>2",
}  # fmt: skip


def random_model(layout="npz", **changes) -> Mixer:
    """Every parameter at random; with the form of GELU that the layout stands for."""
    return redraw(Mixer(**SIZES | {"approximate": GELU[layout]} | changes))


def images_for(model: Mixer, count: int = 3) -> np.ndarray:
    shape = (count, model.height, model.width, model.in_channels)
    return np.random.default_rng(1).standard_normal(shape).astype(str(model.dtype))


def logits_of(model: Mixer, images=None) -> np.ndarray:
    with no_grad():
        return model(images_for(model) if images is None else images).data


def arrays_of(model: Mixer, layout: str) -> dict[str, np.ndarray]:
    state = model.state_dict()
    return {
        e.theirs: to_theirs(e, state[e.ours], layout, model.patch_size)
        for e in entries(layout, len(model.blocks))
    }


def in_the_older_layout(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """There, MLPs also have an axis of length 1."""
    older = {}
    for name, value in arrays.items():
        for now, then in OLDER.items():
            name = re.sub(now, then, name)
        older[name] = value[None] if "_mixing_" in name else value
    return older


def write(path, arrays, layout, **metadata) -> str:
    if layout == "timm":
        safetensors_numpy.save_file(arrays, path, metadata=metadata or None)
    else:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    return str(path)


# ---- reading and writing ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, (8, 20)])
@pytest.mark.parametrize("layout", ["npz", "older", "timm", "module", "model"])
def test_every_layout(tmp_path, layout, size):
    kind = "npz" if layout in ("npz", "older") else "timm"
    model = random_model(kind, image_size=size)
    arrays = arrays_of(model, kind)
    if layout == "older":
        arrays = in_the_older_layout(arrays)
    if layout in ("module", "model"):
        arrays = {f"{layout}.{name}": value for name, value in arrays.items()}
    path, given = write(tmp_path / "weights", arrays, kind), {}
    if size != 12:
        refused(path, "10 tokens", "image_size=(height, width)")
        given = {"image_size": size}
    found = Mixer.from_pretrained(path, **given)
    assert found.config == model.config and not found.training
    assert (found.mean == 0.5).all() and (found.std == 0.5).all()
    same(logits_of(found), logits_of(model))


def test_the_arrays_mean_what_the_paper_says(tmp_path):
    """Equation 1 in the authors' layout, (B, S, C), written out here once more."""
    model = random_model()
    w = arrays_of(model, "npz")
    assert len(w) == 12 * 2 + 6

    def dense(x, name):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}/scale"] + w[f"{name}/bias"]

    def mlp(x, name):
        u = dense(x, f"{name}/Dense_0")
        g = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        return dense(g, f"{name}/Dense_1")

    images = images_for(model)
    x = images.reshape(3, 3, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 9, 4, 4, 3)
    x = np.einsum("bsijk,ijkc->bsc", x, w["stem/kernel"]) + w["stem/bias"]
    for i in range(2):
        block = f"MixerBlock_{i}"
        y = norm(x, f"{block}/LayerNorm_0").swapaxes(1, 2)
        x = x + mlp(y, f"{block}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
    expected = dense(norm(x, "pre_head_layer_norm").mean(1), "head")
    found = Mixer.from_pretrained(write(tmp_path / "w.npz", w, "npz"))
    close(logits_of(found, images), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("channels, size", [(3, (8, 20)), (1, (8, 32)), (3, 12)])
@each_layout
def test_a_round_trip_is_exact(tmp_path, layout, channels, size, approximate):
    model = random_model(
        approximate=approximate, mean=[0.1307, 0.2, 0.3][:channels], image_size=size,
        std=[0.3081, 0.6, 0.7][:channels], class_names=list("abcde"), in_channels=channels,
    )  # fmt: skip
    lost = {} if approximate == GELU[layout] else {"approximate": approximate}
    lost |= {"mean": model.mean.tolist(), "std": model.std.tolist()}
    if layout == "npz":
        lost["class_names"] = model.class_names
        lost |= {} if size == 12 else {"image_size": size}
    with pytest.warns(UserWarning, match="mean, std") as said:
        model.export(tmp_path / "w", layout)
    (said,) = [str(warning.message) for warning in said]
    for name, value in lost.items() if layout == "npz" else ():  # said is what is to be passed
        shown = "[...]" if name == "class_names" else repr(value)
        assert f"{name}={shown}" in said
    assert ("GELU" in said) == ("approximate" in lost)
    assert ("image size" in said) == ("image_size" in lost)
    if layout == "npz" and size == (8, 32):
        refused(tmp_path / "w", **lost | {"image_size": (8, 8)})
    found = Mixer.from_pretrained(tmp_path / "w", **(lost if layout == "npz" else {}))
    assert found.config == model.config and found.class_names == model.class_names
    same([found.mean, found.std], [model.mean, model.std])
    same_state(found, model.state_dict())
    images = np.random.default_rng(0).integers(0, 256, (3, *images_for(model).shape[1:]), np.uint8)
    same(logits_of(found, images), logits_of(model, images))


def test_own_checkpoints_and_names_of_classes(tmp_path):
    names = list("abcde")
    model = random_model(class_names=names)
    save_checkpoint(tmp_path / "c.npz", model, AdamW(model.parameters()))
    found = Mixer.from_pretrained(tmp_path / "c.npz")
    same(logits_of(found), logits_of(model))
    assert found.class_names == model.class_names
    assert Mixer.from_pretrained(tmp_path / "c.npz", num_classes=2).class_names is None
    path = write(tmp_path / "w", arrays_of(random_model(), "npz"), "npz")
    assert Mixer.from_pretrained(path, class_names=names).class_names == names
    found = Mixer.from_pretrained(path, num_classes=2, class_names=["x", "y"])
    assert found.class_names == ["x", "y"]
    refused(path, "2 class names for 5 classes", class_names=["a", "b"])
    save_checkpoint(tmp_path / "wide.npz", random_model(image_size=(8, 32)))
    turned = Mixer.from_pretrained(tmp_path / "wide.npz", image_size=(32, 8))
    assert (turned.height, turned.width) == (32, 8)


@each_layout
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_bytes_are_read_as_float32(tmp_path, layout, dtype):
    model = random_model(layout)
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        if layout == "npz":
            pytest.skip("NumPy writes no bfloat16")
    arrays = {k: v.astype(dtype) for k, v in arrays_of(model, layout).items()}
    found = Mixer.from_pretrained(write(tmp_path / "w", arrays, layout))
    assert found.dtype == np.float32
    state = model.state_dict().items()
    same_state(found, {name: value.astype(dtype).astype("float32") for name, value in state})


def test_a_longer_list_of_arrays(tmp_path):
    """Safetensors may pad it with blanks, up to a limit."""
    model = random_model()
    path = Path(write(tmp_path / "w", arrays_of(model, "timm"), "timm"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for more in (8, LARGEST_HEADER - length):
        text = data[8 : 8 + length] + b" " * more
        path.write_bytes(struct.pack("<Q", length + more) + text + data[8 + length :])
        found = Mixer.from_pretrained(path, approximate="tanh")
        same(logits_of(found), logits_of(model))
    size = LARGEST_HEADER + 8
    path.write_bytes(struct.pack("<Q", size) + b"{}".ljust(size) + b"x" * 8)
    refused(path, "its list of arrays claims")


# ---- what a file does not say ---------------------------------------------------------------


def test_how_pictures_are_prepared_goes_out_and_comes_back(tmp_path):
    model = Mixer.load("digits")
    with pytest.warns(UserWarning, match="preparation='digit'"):
        model.export(tmp_path / "w", "npz")
    found = Mixer.from_pretrained(tmp_path / "w", preparation="digit")
    assert found.preparation == "digit"
    assert Mixer.from_pretrained(tmp_path / "w").preparation is None
    with pytest.warns(UserWarning, match="form of GELU"):
        model.export(tmp_path / "timm", "timm")
    for path in ("digits", tmp_path / "timm"):
        assert Mixer.from_pretrained(path).preparation == "digit"
        assert Mixer.from_pretrained(path, num_classes=3).preparation is None
        assert Mixer.from_pretrained(path, in_channels=3).preparation is None
    assert remake(model, stochastic_depth=0.1).preparation == "digit"
    assert model.resize(56).preparation is None


@pytest.mark.filterwarnings("default:.*how images were prepared")
@pytest.mark.parametrize("given", [{}, {"mean": 0.0}, {"std": 1.0}, {"mean": 0, "std": 1}])
def test_files_that_do_not_say_how_images_were_prepared(tmp_path, given):
    """timm's do not; ours and the authors' layout do."""
    model = random_model("timm")
    path = write(tmp_path / "w", arrays_of(model, "timm"), "timm", format="pt")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = Mixer.from_pretrained(path, **given)
    assert len(said) == (len(given) < 2)
    assert all(path in str(w.message) and "mean=" in str(w.message) and w.filename == __file__
               for w in said)  # fmt: skip
    assert (found.mean == given.get("mean", 0.5)).all()
    assert (found.std == given.get("std", 0.5)).all()
    model.export(tmp_path / "ours", "timm")
    random_model().export(tmp_path / "w.npz", "npz")
    save_checkpoint(tmp_path / "own.npz", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("ours", "w.npz", "own.npz"):
            Mixer.from_pretrained(tmp_path / name)


# ---- other heads, colours and sizes -------------------------------------------------------------


@each_layout
def test_a_fresh_head(tmp_path, layout):
    model = random_model(layout)
    arrays = arrays_of(model, layout)
    for number in range(2):
        path = write(tmp_path / f"w{number}", arrays, layout)
        found = Mixer.from_pretrained(path, num_classes=9)
        assert logits_of(found).shape == (3, 9) and not logits_of(found).any()
        same(found.blocks[1].norm2.weight.data, model.blocks[1].norm2.weight.data)
        arrays = {k: v for k, v in arrays.items() if not k.startswith("head")}
    refused(path, "num_classes=")


@each_layout
def test_no_head_at_all(tmp_path, layout):
    """The pooled features, whose product with the old head is the old scores."""
    model = random_model(layout)
    path = write(tmp_path / "w", arrays_of(model, layout), layout)
    headless = Mixer.from_pretrained(path, num_classes=0)
    pooled = logits_of(headless)
    expected = pooled @ model.head.weight.data + model.head.bias.data
    assert pooled.shape == (3, 8)
    close(logits_of(model), expected, atol=1e-5)
    headless.export(tmp_path / "again", layout)
    headless.save(tmp_path / "own.npz")
    for found in (
        Mixer.from_pretrained(tmp_path / "again", num_classes=0), Mixer.load(tmp_path / "own.npz"),
        Mixer.from_pretrained(tmp_path / "own.npz"),
    ):  # fmt: skip
        same(logits_of(found), pooled)
    assert headless.summary().parameters == headless.num_parameters()
    with pytest.raises(ValueError, match="no head"):
        headless.predict(images_for(headless))


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_features_of_blocks(device, checkpoint_blocks):
    model = random_model(checkpoint_blocks=checkpoint_blocks).to(device)
    images = images_for(model)
    first, last, again = model.features(images, blocks=[0, 1, -1])
    assert first.shape == last.shape == (3, 9, 8)
    same(last.data, again.data)
    assert abs(first.numpy() - last.numpy()).max() > 0.1
    h = F.layer_norm(last, model.norm.weight, model.norm.bias).mean(axis=1)
    close(model.head(h).data, model(images).data, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError):
        model.features(images, blocks=[2])


def test_frozen_weights_stay(device):
    model = random_model().to(device)
    freeze(model, "stem.*", "blocks.*.norm?.weight")
    before = model.state_dict()
    optimizer = AdamW(model.parameters(), lr=0.1)
    F.cross_entropy(model(images_for(model)), [0, 1, 2]).backward()
    optimizer.step()
    frozen = {n for n in before if re.fullmatch(r"stem\..*|blocks\..*\.norm[12]\.weight", n)}
    assert changed(model, before) == before.keys() - frozen
    with pytest.raises(ValueError, match="blok"):
        freeze(model, "head.*", "blok*")
    assert not model.stem.weight.requires_grad and model.head.weight.requires_grad
    freeze(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_images_answer_alike_with_any_number_of_channels(tmp_path, channels):
    model = random_model()
    path = write(tmp_path / "w", arrays_of(model, "npz"), "npz")
    found = Mixer.from_pretrained(path, in_channels=channels)
    grey = images_for(model)[..., :1]
    expected = logits_of(model, np.repeat(grey, 3, axis=-1))
    found = logits_of(found, np.repeat(grey, channels, axis=-1))
    close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [12, (8, 12)])
def test_a_larger_model_is_the_old_one_on_each_tile(factor, size):
    model = random_model(image_size=size, dtype="float64")
    high, wide = model.height, model.width
    larger = model.resize((factor * high, factor * wide))
    images = images_for(larger)
    tiles = [
        images[:, r * high : (r + 1) * high, c * wide : (c + 1) * wide]
        for r in range(factor) for c in range(factor)
    ]  # fmt: skip
    each = np.mean([logits_of(model, tile) for tile in tiles], axis=0)
    assert abs(each).max() > 0.1
    close(logits_of(larger, images), each, rtol=0, atol=1e-10)
    with no_grad():  # nor do their tokens mix anywhere before the mean
        features = larger.features(images, [-1])[0].numpy().reshape(3, factor, high // 4, factor,
                                                                    wide // 4, 8)  # fmt: skip
        for number, tile in enumerate(tiles):
            row, column = divmod(number, factor)
            alone = model.features(tile, [-1])[0].numpy()
            close(features[:, row, :, column].reshape(alone.shape), alone, rtol=0, atol=1e-10)


def test_a_larger_model_learns_where_the_old_one_was(device):
    larger = random_model().to(device).train().resize(24)
    assert larger.device == device.replace("cuda", "cuda:0") and larger.training
    F.cross_entropy(larger(images_for(larger)), [0, 1, 2]).backward()
    assert all(np.isfinite(to_numpy(p.grad)).all() for p in larger.parameters())
    for size in (18, 6, (24, 12), (24, 36)):
        with pytest.raises(ValueError, match="24 x 24"):
            random_model().resize(size)


# ---- files that do not fit, damaged and hostile ones --------------------------------------------


def refused(path, *words, **changes) -> str:
    """ValueError with the file's name and these words, at once and without much memory."""
    load = functools.partial(Mixer.from_pretrained, **changes)
    message = assert_refused(path, load, megabytes=200)
    assert all(word in message for word in words), message
    return message


@each_layout
def test_what_does_not_fit_is_named(tmp_path, layout):
    good = arrays_of(random_model(), layout)
    w1, shown, stem = {
        "npz": ("MixerBlock_1/token_mixing/Dense_0/kernel", "(9, 7)", "stem/kernel"),
        "timm": ("blocks.1.mlp_tokens.fc1.weight", "(7, 9)", "stem.proj.weight"),
    }[layout]
    bias = good[stem.replace("kernel", "bias").replace("weight", "bias")]
    first = sorted(good.keys() - {stem})[0]
    cases = [  # a name, what stands there, what is said
        (w1, None, ["missing", w1]), (w1, good[w1].T.copy(), [w1, shown]),
        (w1, good[w1].astype("float64"), ["dtype"]),
        (w1, np.ones(good[w1].shape, "uint8"), [w1, "uint8"]),
        (w1, good[w1] * np.float32(np.nan), [w1, "NaN"]),
        ("extra", np.ones(3, "float32"), ["extra", "not known"]),
        (stem, None, ["stem/kernel", "stem.proj.weight", first]),
        (stem, good[stem].astype("uint8"), [stem, "uint8", f"entries {good[stem].shape}"]),
        (stem, good[stem][..., :3], ["(3,)"] if layout == "npz" else ["square"]),
        (stem, bias, ["stem", "4 axes"]),
    ]  # fmt: skip
    for number, (name, value, words) in enumerate(cases):
        arrays = {k: v for k, v in (good | {name: value}).items() if v is not None}
        refused(write(tmp_path / f"w{number}", arrays, layout), *words)
    refused(write(tmp_path / "x", {"something": bias}, layout), "something")
    refused(write(tmp_path / "none", {}, layout))


def test_pickles_of_pytorch_are_refused_with_the_way_out(tmp_path):
    pack(tmp_path / "w.pth", {"archive/data.pkl": pickle.dumps(print)})
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    for name in ("w.pth", "old.pth"):
        message = refused(tmp_path / name, "pickle", "torch.load", "save_file")
        assert message.count("\n") == 2 and name.replace("pth", "safetensors") in message
        assert_refused(tmp_path / name, Mixer.load, r"torch\.load")
    for layout in ("npz", "timm"):  # others' files are from_pretrained's work, not load's
        path = write(tmp_path / layout, arrays_of(random_model(), layout), layout)
        assert_refused(path, Mixer.load, r"Mixer\.from_pretrained")
    for call in (Mixer.load, Mixer.from_pretrained):
        with pytest.raises(IsADirectoryError, match="give a file"):
            call(tmp_path)
        with pytest.raises(OSError):
            call(tmp_path / "nothing")


@pytest.mark.parametrize("call", [Mixer.load, Mixer.from_pretrained])
@pytest.mark.parametrize("start, words", [
    (b"\x89HDF\r\n\x1a\n", "HDF5.*numpy.savez"), (b"", "empty.*again"),
    (b"<!DOCTYPE html>", "web page"), (b"\x1f\x8b\x08", "gunzip"),
    (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    (b"\x93NUMPY\x01\x00", r"\.npy"), (b"\x80\x02}", r"(?s)save_file.*torch\.load"),
    (b"something else", "neither"), (bytes(10_000), "neither"), (b"PK", "damaged|archive"),
    (b"PK\x05\x06" + bytes(18), "no configuration|holds nothing"),
])  # fmt: skip
def test_other_files_are_named_with_the_next_step(tmp_path, call, start, words):
    (tmp_path / "weights").write_bytes(start)
    assert_refused(tmp_path / "weights", call, words)


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one_array(dtype, shape, end, data=b"1234", name="a"):
    """A file of one array, which claims to end there."""
    return safetensors(
        {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}, data or bytes(end)
    )


@pytest.mark.parametrize("data, said", [
    (one_array("F32", [1 << 40], 4, name="stem.proj.weight"), ""),
    (one_array("F32", [1], 1 << 50, name="stem.proj.weight"), ""), (one_array("OBJ", [1], 4), ""),
    (safetensors({}, length=1 << 62), ""), (safetensors(b"{" * 1000), ""),
    (safetensors({"a": 1}), ""), (safetensors(b'{"a": [[[['), ""), (b"", ""), (b"{", ""),
    (bytes(9), ""), (safetensors({"__metadata__": {"minimixer": "no json"}}), ""),
    *[(one_array(dtype, [1], size, b""), f"a is of dtype {dtype}")
      for dtype, size in {"I64": 8, "F8_E4M3": 1, "BOOL": 1, "C64": 8, "I16": 2}.items()],
])  # fmt: skip
def test_hostile_safetensors(tmp_path, data, said):
    (tmp_path / "w.safetensors").write_bytes(data)
    refused(tmp_path / "w.safetensors", said)


@pytest.mark.parametrize("own", [
    "no json", "[]", '{"image_size": "x"}', '{"image_size": [1e9, 1]}', '{"approximate": 5}',
    '{"mean": [NaN, 1, 2]}', '{"class_names": 7}', '{"class_names": ["a"]}',
    '{"class_names": "abcde"}', '{"class_names": [1, 2, 3, 4, 5]}', '{"class_names": {"a": 1}}',
    '{"class_names": ["a", "b", "c", "d", null]}', '{"class_names": [["a"], "b", "c", "d", "e"]}',
    '{"image_size": [4, 36]}{}', '{"std": 0}', "[" * 200_000, '{"a": ' * 200_000,
    '{"image_size": ' + "9" * 5000 + "}", '{"mean": 1, "mean": 0}', '{"mean": "x"}',
    '{"mean": {}}', '{"image_size": {}}', '{"image_size": false}', '{"mean": [[1, 2], [3]]}',
    '{"mean": Infinity}', '{"std": 1e999}',
])  # fmt: skip
def test_metadata_of_ours_that_is_not(tmp_path, own):
    arrays = arrays_of(random_model(), "timm")
    refused(write(tmp_path / "w", arrays, "timm", minimixer=own))


def test_export_refuses(tmp_path):
    model = random_model()
    with pytest.raises(ValueError, match="npz, timm"):
        model.export(tmp_path / "w", "onnx")
    model.head.bias.data = np.full(5, np.nan)
    with pytest.raises(ValueError, match=r"head\.bias"):
        model.export(tmp_path / "w", "npz")
    assert list(tmp_path.iterdir()) == []


# ---- against timm itself ------------------------------------------------------------------------


def test_against_numbers_stored_from_timm(tmp_path, device):
    """make_timm_reference.py's: in float64 the same to float32's digits, with its exact GELU."""
    stored = dict(np.load(Path(__file__).with_name("timm_reference.npz")))
    weights = {k[8:]: v.astype("float64") for k, v in stored.items() if k.startswith("weights/")}
    model = Mixer.from_pretrained(write(tmp_path / "w", weights, "timm")).to(device)
    assert model.config["approximate"] == "none" and model.config["tokens_mlp_dim"] == 7
    logits = model(stored["images"])
    assert abs(stored["logits"]).max() > 0.5
    close(logits.data, stored["logits"], rtol=1e-6)
    F.cross_entropy(logits, stored["labels"]).backward()
    gradients = {name: to_numpy(p.grad) for name, p in model.named_parameters()}
    for e in entries("timm", 2):
        close(to_theirs(e, gradients[e.ours], "timm", 4), stored[f"gradients/{e.theirs}"])


@pytest.mark.parametrize("name", ["mixer_s32", "mixer_s16", "mixer_b32"])
def test_against_timm(tmp_path, name):
    """Every parameter redrawn at random: logits, and every gradient, both ways."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"{name}_224", num_classes=11).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            scale = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator) + (p.mean() == 1))
    arrays = {k: v.numpy() for k, v in theirs.state_dict().items()}
    ours = Mixer.from_pretrained(write(tmp_path / "w", arrays, "timm"))
    images = images_for(ours, count=2)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    labels = torch.tensor([3, 7])
    logits = theirs(x)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = logits.detach().numpy()
    found = ours(images)
    F.cross_entropy(found, labels.numpy()).backward()
    assert abs(expected).max() > 0.1
    assert abs(found.data - expected).max() <= 1e-5 * abs(expected).max()
    gradients = {n: p.grad for n, p in ours.named_parameters()}
    largest = max(abs(p.grad).max().item() for p in theirs.parameters())
    of_theirs = dict(theirs.named_parameters())
    for e in entries("timm", len(ours.blocks)):
        mine = to_theirs(e, gradients[e.ours], "timm", ours.patch_size)
        assert abs(mine - of_theirs[e.theirs].grad.numpy()).max() <= 1e-4 * largest, e.theirs
    ours.export(tmp_path / "back", "timm")
    back = safetensors_numpy.load_file(tmp_path / "back")
    theirs.load_state_dict({k: torch.tensor(v) for k, v in back.items()})
    with torch.no_grad():
        same(theirs(x).numpy(), expected)
