"""What an editor knows: the types of what users write, and the names of Mixer's arguments.

How many of the public types are known is a number, of the installed package: see .ci/run.
"""

import inspect
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest

from minimixer import Mixer
from minimixer.model.variants import Arguments, Changes, Sizes, check_config
from minimixer.weights.pretrained import load_pretrained

ROOT = Path(__file__).parent.parent

BEFORE = """
import numpy as np
import minimixer
from minimixer import (
    AdamW, Dropout, Linear, Mixer, Sequential, Tensor, concatenate, maximum, no_grad, ops, rearrange
)
from minimixer import functional as F

images = np.zeros((2, 224, 224, 3), "float32")
t, layer, model = Tensor(images), Linear(2, 3), Mixer.from_name("mixer_s32", num_classes=3)
optimizer = AdamW(model.parameters(), lr=1e-3)

@no_grad()
def called(x: int) -> str:
    return str(x)

@no_grad
def bare(x: int) -> str:
    return str(x)
"""

# What is written, and what an editor is to say of it.
TYPES = {
    "Mixer": """model | Mixer.load("digits") | model.resize(256) | model.train() | model.eval()
        Mixer.from_pretrained("digits", num_classes=3) | model.to("cuda").to(dtype="float64")
        model.requires_grad_(False) | model.set_precision("tf32")""",
    "Linear": 'layer | layer.to("cuda") | layer.train().eval()',
    "Linear | None": "model.head",
    "Tensor": """model(images) | model.forward(t) | model.pooled(images) | model.convert(images)
        t + 1 | 1 - t | t * t | t / 2 | 2 ** t | t @ t | -t | abs(t) | t[0] | t > 3 | t == t | t.T
        t.sum() | t.mean(axis=0, keepdims=True) | t.max() | t.var() | t.argmax(axis=1) | t.exp()
        t.reshape(-1) | t.transpose() | t.flatten().relu() | t.to("cuda").float() | t.detach()
        ops.add(t, 1) | ops.exp(t) | rearrange.sum(t) | rearrange.reshape(t, 3) | maximum(t, 0)
        concatenate([t, t]) | minimixer.where(t > 0, t, 0) | minimixer.clip(t, 0, 1)
        F.linear(t, t) | F.gelu(t) | F.relu(t) | F.layer_norm(t, t, t) | F.softmax(t)
        F.cross_entropy(t, [1]) | F.mse_loss(t, t) | layer.forward(t) | Dropout(0.1).forward(t)
        model.blocks[0].forward(t) | model.blocks[0].token_mixing.forward(t)""",
    "list[Tensor]": "model.features(images, [0])",
    "Parameter": "model.stem.weight | model.blocks[0].token_mixing.w1 | model.parameters()[0]",
    "Module": "Sequential(layer, layer)[0] | model.norm",
    "dict[str, Any]": "model.config | optimizer.state_dict()",
    "(x: int) -> str": "called | bare",
    "(images: Any) -> Tensor": "model.forward | model.pooled",
    "Summary": 'Mixer.summary_of("mixer_s32", num_classes=3) | model.summary()',
    "Recorded": "minimixer.record(called, model, optimizer)",
    "bool": "minimixer.gradcheck(called, [t])",
    "float": "minimixer.schedule(3, 10)",
}

MISSPELT = [
    'Mixer.from_name("mixer_s32", num_clases=3)', 'Mixer.from_name("mixer_s32", num_blocks="3")',
    'Mixer.from_pretrained("digits", hidden_dim=3)', 'Mixer.summary_of("mixer_s32", seed=3)',
]  # fmt: skip


def expressions(text):
    return [part.strip() for line in text.splitlines() for part in line.split(" | ")]


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is missing")
def test_an_editor_knows_what_comes_of_an_expression(tmp_path):
    """Asked of pyright, as editors do; a misspelt argument is marked."""
    asked = [(e, kind) for kind, text in TYPES.items() for e in expressions(text)]
    program = tmp_path / "program.py"
    lines = [BEFORE, *(f"reveal_type({expression})" for expression, _ in asked), *MISSPELT]
    program.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", str(program)]
    answer = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout)
    said = [(d["severity"], d["message"]) for d in answer["generalDiagnostics"]]
    found = [message for severity, message in said if severity == "information"]
    assert found == [f'Type of "{e}" is "{kind}"' for e, kind in asked]
    errors = {d["range"]["start"]["line"]: d["message"] for d in answer["generalDiagnostics"]
              if d["severity"] == "error"}  # fmt: skip
    first = "\n".join(lines).count("\n") + 1 - len(MISSPELT)
    assert sorted(errors) == [first + i for i in range(len(MISSPELT))], errors


def hints(function, *without):
    found = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name not in without]
    return {name: found[name] for name in names}


def test_the_arguments_of_a_mixer_are_those_of_its_constructor():
    """Names and types: what from_name and others hand on is written down once more, for editors."""
    assert get_type_hints(Arguments) == hints(Mixer.__init__, "self")
    assert get_type_hints(Changes) == hints(load_pretrained, "path")
    assert Sizes.__annotations__.keys() <= Arguments.__annotations__.keys()


def test_the_sizes_are_what_describes_a_model():
    """All of them are in `config`, which is complete, but "norm" where it is LayerNorm."""
    config = check_config(**{name: 1 for name in ("image_size", "patch_size", "num_blocks",
                             "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")})  # fmt: skip
    assert config.keys() | {"norm"} == Sizes.__annotations__.keys()
