"""draw_graph: every operation, every leaf, and a line from each to what used it."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from help import small_mixer
from strategies import reference_functions

from minimixer import Function, Module, Parameter, Tensor, draw_graph, no_grad
from minimixer import functional as F
from minimixer.rearrange import concatenate

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture):
    """(the texts of operations, those of leaves, the number of lines between operations)."""
    root = ET.fromstring(picture)
    boxes, texts = root.findall(f"{SVG}rect"), [t.text for t in root.findall(f"{SVG}text")]
    pairs = list(zip(texts[::2], (shape or "" for shape in texts[1::2]), strict=True))
    kinds = [box.get("class") for box in boxes]
    width, height = (float(root.get(name)) for name in ("width", "height"))
    for box in boxes:
        assert float(box.get("x")) + float(box.get("width")) < width
        assert float(box.get("y")) + float(box.get("height")) < height
    for kind in ("", "leaf"):  # boxes one below the other, each with room for letters of 12 pixels
        bottom = 0.0
        for box in boxes:
            if box.get("class") == kind:
                assert float(box.get("y")) >= bottom and float(box.get("height")) > 14
                bottom = float(box.get("y")) + float(box.get("height"))
    lines = [path.get("d") for path in root.findall(f"{SVG}path")]
    between = [line for line in lines if not re.search(r" h\d+$", line)]
    return ([pair for pair, kind in zip(pairs, kinds, strict=True) if kind == ""],
            [pair for pair, kind in zip(pairs, kinds, strict=True) if kind == "leaf"],
            len(between))  # fmt: skip


def test_a_mixer(device):
    model = small_mixer(device, num_blocks=1)
    images = Tensor(np.zeros((2, 8, 8, 1), "float32"), requires_grad=True, device=device)
    with reference_functions():
        picture = draw_graph(F.cross_entropy(model(images), [0, 1]), model)
    operations, leaves, lines = parsed(picture)
    cut = [("Reshape", "(2, 2, 4, 2, 4, 1)"), ("Transpose", "(2, 2, 2, 4, 4, 1)")]
    mixing = ["LayerNorm", "LinearFirst", "GELU", "LinearFirst", "Add",
              "LayerNorm", "Linear", "GELU", "Linear", "Add"]  # fmt: skip
    shapes = ["(4, 2, 8)", "(6, 2, 8)", "(6, 2, 8)", *["(4, 2, 8)"] * 3]
    shapes += ["(4, 2, 10)", "(4, 2, 10)", "(4, 2, 8)", "(4, 2, 8)"]
    assert operations == [
        *cut, ("Reshape", "(4, 2, 16)"), ("Linear", "(4, 2, 8)"),
        *zip(mixing, shapes, strict=True),
        ("LayerNorm", "(4, 2, 8)"), ("Mean", "(2, 8)"), ("Linear", "(2, 3)"),
        ("CrossEntropy", "()"),
    ]  # fmt: skip
    named = [(name, f"{p.shape}") for name, p in model.named_parameters()]
    assert leaves[0] == ("Tensor", "(2, 8, 8, 1)") and sorted(leaves[1:]) == sorted(named)
    assert lines == len(operations) - 1 + 2  # the skips
    assert picture._repr_svg_() == picture


def test_several_outputs_values_used_twice_and_files(device, tmp_path):
    class Both(Function):
        def forward(self, x):
            return x + 1, x[:1] * 2

        def backward(self, a, b):
            raise AssertionError

    x = Tensor([1.0, 2.0], requires_grad=True, device=device)
    first, second = Both.apply(x)
    picture = draw_graph(first * x * second)
    assert parsed(picture) == (
        [("Both", "(2,)"), ("Multiply", "(2,)"), ("Multiply", "(2,)")], [("Tensor", "(2,)")], 3
    )  # fmt: skip
    picture.save(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == picture


def test_many_leaves_of_one_operation(device):
    tensors = [Tensor([[float(i)] * (i + 1)], requires_grad=True, device=device) for i in range(5)]
    picture = draw_graph((concatenate(tensors, axis=1) * 2).sum())
    operations, leaves, lines = parsed(picture)
    assert [name for name, _ in operations] == ["Concatenate", "Multiply", "Sum"] and lines == 2
    assert leaves == [("Tensor", f"{t.shape}") for t in tensors]
    assert len(repr(picture)) < 80 and f"{len(picture):,}" in repr(picture)


def test_names_of_parameters_may_be_anything(tmp_path):
    class Named(Module):
        def __init__(self):
            self.parts = {
                name: Parameter([1.0]) for name in ("a<&>'", "b\x1b[31m", "c\ud800", "dé")
            }

    model = Named()
    picture = draw_graph(sum(model.parts.values()), model)
    picture.save(tmp_path / "graph.svg")
    names = [name for name, _ in parsed(picture)[1]]
    assert names == ["parts.a<&>'", r"parts.b\x1b[31m", r"parts.c\ud800", "parts.dé"]


def test_what_can_not_be_drawn(device):
    x = Tensor([1.0], requires_grad=True, device=device)
    with no_grad():
        unrecorded = x * 2
    for nothing in (x, unrecorded, Tensor([1.0]) * 2, 3.0, np.ones(2)):
        with pytest.raises(ValueError, match="nothing was recorded"):
            draw_graph(nothing)
    for model in (Tensor, "model", 3):
        with pytest.raises(TypeError, match="draw_graph: model must be a Module"):
            draw_graph(x * 2, model)
    y = (x * 2).sum()
    y.backward()
    with pytest.raises(ValueError, match="backward has released this graph: draw it before"):
        draw_graph(y)
    for _ in range(2001):
        x = x + 1
    with pytest.raises(ValueError, match="more than 2000 operations"):
        draw_graph(x)
