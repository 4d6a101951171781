"""What is read is what runs: whoever edits, patches or replaces plain code sees it happen, though
fast forms (minimixer/kernels) stand in for it otherwise."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from processes import quick
from strategies import reference_functions

from minimixer import SGD, Adam, AdamW, Mixer, Module, Parameter, Tensor, kernels, no_grad
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.engine import backward as backward_py
from minimixer.engine import forms
from minimixer.engine import ops as ops_py
from minimixer.engine import products as products_py
from minimixer.engine import rearrange as rearrange_py
from minimixer.engine import tensor as tensor_py
from minimixer.kernels import node, unchanged
from minimixer.kernels.cpu import layer_norm as cpu_layer_norm
from minimixer.kernels.cpu import mlp as cpu
from minimixer.kernels.gpu import layer_norm as gpu_layer_norm
from minimixer.kernels.gpu import layers as gpu
from minimixer.kernels.gpu import mlp as gpu_mlp
from minimixer.model import block as block_py
from minimixer.model import mixer as mixer_py
from minimixer.nn import layer_norm as layer_norm_py
from minimixer.nn import layers as nn_py
from minimixer.nn import loss as loss_py
from minimixer.training import norms as norms_py
from minimixer.training import optimizer as optimizer_py

ROOT = Path(__file__).parents[1]
RENEW = "python -m minimixer.kernels --renew"
RENEW_UNTESTED = [*RENEW.split()[1:], "--untested"]
# Large enough for every fast form.
SIZES = {
    "image_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "num_blocks": 2,
    "hidden_dim": 64, "tokens_mlp_dim": 32, "channels_mlp_dim": 128, "stochastic_depth": 0.5,
}  # fmt: skip
BATCH = 64


# ---- a model, and what it does ------------------------------------------------------------------


def make_model(device, **changes):
    model = Mixer(**SIZES | changes).to(device)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data = 0.3 * rng.standard_normal(p.shape)
    return model


def given(model):
    rng = np.random.default_rng(2)
    images = rng.standard_normal((BATCH, model.height, model.width, 1)).astype("float32")
    return images, to_device(rng.integers(0, 10, BATCH), model.device)


def outcome(model):
    """Scores and gradients, as one vector."""
    images, labels = given(model)
    model.zero_grad()
    scores = model(images)
    F.cross_entropy(scores, labels).backward()
    return np.concatenate([
        to_numpy(scores.data).ravel(), *[to_numpy(p.grad).ravel() for p in model.parameters()]
    ])  # fmt: skip


def steps(device, **changes):
    """The weights of a model after a step of each optimizer."""
    model = make_model(device, **changes)
    images, labels = given(model)
    for make, more in (SGD, {}), (AdamW, {"eps": 1e-2}), (Adam, {"eps": 1e-2}):
        optimizer = make(model.parameters(), lr=0.1, weight_decay=0.1, **more)
        F.cross_entropy(model(images), labels).backward()
        if more:
            optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
    return to_numpy(model.buffer.values)


def far(found, expected):
    """The largest difference, relative to the largest number."""
    return abs(found - expected).max() / abs(expected).max()


# Between the plain code and the fast forms, and what a change is at least.
ROUNDING, CHANGE = 2e-5, 1e-3


def as_the_plain_code_has_it(model):
    """Its outcome, but for rounding that of the plain code."""
    found = outcome(model)
    with reference_functions():
        assert far(found, outcome(model)) < ROUNDING
    return found


# ---- by editing ---------------------------------------------------------------------------------

CHILD = "\n".join([
    """
import json, sys
import numpy as np
from minimixer import SGD, Adam, AdamW, GradientError, Mixer, Tensor, gradcheck, kernels
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.kernels.cpu import mlp as cpu
from minimixer.kernels.gpu import mlp as gpu

calls = []
for fast in (cpu.FastMLP, gpu.FastMLP):
    def forward(self, *inputs, plain=fast.forward, **options):
        calls.append(self)
        return plain(self, *inputs, **options)
    fast.forward = forward
""",
    f"SIZES, BATCH = {SIZES}, {BATCH}", *map(inspect.getsource, (make_model, given, steps)), """
out, device, approximate = sys.argv[1:]
np.save(out, steps(device, approximate=approximate))
fast = len(calls)
small = make_model(
    device, dtype="float64", image_size=8, patch_size=4, hidden_dim=6, tokens_mlp_dim=3,
    channels_mlp_dim=5, stochastic_depth=0.0, approximate=approximate)
images, labels = (array[:3] for array in given(small))
try:
    right = gradcheck(lambda *_: F.cross_entropy(small(images), labels), small.parameters(),
                      directions=2)
except GradientError:
    right = False
print(json.dumps({"right": right, "fast": fast, "status": kernels.status()}))
"""])  # fmt: skip


def copied(folder):
    """A copy of the package in a folder."""
    leave = shutil.ignore_patterns("__pycache__", "mnist", "weights", "pictures", "parallel")
    shutil.copytree(ROOT / "minimixer", folder / "minimixer", ignore=leave)
    return folder / "minimixer"


def edited_copy(folder):
    """The same, in which a page of the book was edited."""
    package = copied(folder)
    with page(package, "erf").open("a", encoding="utf-8") as file:
        file.write("\nONE_FROM = 6.5\n")
    return package


def page(package, name):
    """A page of the book, in whatever room."""
    return next(package.glob(f"*/{name}.py"))


def python(folder, *arguments, paths=None, works=True, **environment):
    """What a Python says that finds its packages in a folder, or in other `paths`."""
    kept = {k: v for k, v in os.environ.items() if k != "MINIMIXER_KERNELS"}
    paths = [*map(str, paths or [folder]), *[p for p in sys.path if p and p != str(ROOT)]]
    kept |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=kept | environment, cwd=folder, timeout=120,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0 or not works, done.stderr
    return done


def trained(folder, device, approximate="tanh", **environment):
    """The weights of a model trained with the package in a folder, and what CHILD says."""
    out = folder / "weights.npy"
    done = python(folder, "-c", CHILD, out, device, approximate, **environment)
    return np.load(out), json.loads(done.stdout)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """What `trained` finds for the package as it is: asked for once for each device and GELU."""
    found = {}

    def ask(device, approximate="tanh"):
        key = device, approximate
        if key not in found:
            folder = tmp_path_factory.mktemp("untouched")
            copied(folder)
            found[key] = trained(folder, *key)
            assert found[key][1]["right"] and found[key][1]["fast"] == 3 * 2 * 2
            assert found[key][1]["status"] == "kernels: fast"
        return found[key]

    return ask


EDITS = {  # file, what stands there, what is put there; and whether it makes a gradient wrong
    "Linear.backward": (
        "functional", "dweight = matmul(self.x.T, dy) if", "dweight = 2 * matmul(self.x.T, dy) if",
        True),
    "LinearFirst.backward": (
        "functional", "dweight = matmul(self.x, dy.T) if", "dweight = 2 * matmul(self.x, dy.T) if",
        True),
    "GELU.backward": ("functional", "return dy * self.slope", "return 2 * dy * self.slope", True),
    "LayerNorm.backward": (
        "layer_norm", "return gradients(dy, ", "return gradients(2 * dy, ", True),
    "dgamma": ("layer_norm", "sum_rows(rows * x_hat)", "sum_rows(2 * rows * x_hat)", True),
    "normalize": ("layer_norm", "(variance + epsilon) ** 0.5", "(variance + 1) ** 0.5", False),
    "gelu_and_slope": ("functional", "slope += phi\n", "slope += 2 * phi\n", True),
    "as_rows": (
        "products", "return x.reshape(math.prod(x.shape[:-1])",
        "return 1.5 * x.reshape(math.prod(x.shape[:-1])", False),
    "_A": ("functional", "_A = math.sqrt(2 / math.pi), 0.044715",
           "_A = math.sqrt(2 / math.pi), 0.44715", False),
    "half": ("functional", "phi *= 0.5\n    phi += 0.5", "phi *= 0.4\n    phi += 0.5", False),
    "erf": ("erf", "1.28379167095512558561e-01", "2.28379167095512558561e-01", False),
    "MixerBlock.forward": (
        "block", "self.drop1(self.token_mixing(self.norm1(x)))",
        "self.drop1(self.token_mixing(x))", False),
    "MixerMLP.forward": (
        "block", "F.linear(self.hidden(x), self.w2, self.b2)", "F.linear(self.hidden(x), self.w2)",
        False),
    "MixerMLP.hidden": ("block", "F.linear(x, self.w1, self.b1)", "F.linear(x, self.w1)", False),
    "Mixer.trunk": ("mixer", "return self.norm(x)", "return x", False),
    "StochasticDepth.forward": (
        "layers", "return multiply(x, self.keep(x, x.shape[1], 1)[None])", "return x", False),
    "nn.LayerNorm.forward": (
        "layers", "return F.layer_norm(x,", "return F.layer_norm(x + x * x,", False),
    "nn.Linear.forward": (
        "layers", "F.linear(x, self.weight, self.bias)", "F.linear(x, self.weight)", False),
    "AdamW.update": ("optim", "w -= lr * (decay * w +", "w -= 2 * lr * (decay * w +", False),
    "gradient_norm": ("norms", "* unit).reshape(())", "* unit * 2).reshape(())", False),
    "matmul": ("products", "return multiply(a, b)\n", "return 1.5 * multiply(a, b)\n", False),
    "sum_rows": ("products", "return matmul(ones,", "return 2 * matmul(ones,", True),
    "Add.backward": (
        "ops", "self.undo(dy if self.needs[0]", "self.undo(2 * dy if self.needs[0]", True),
    "Tensor.__add__": (
        "tensor", "return ops.add(self, other)", "return ops.subtract(self, other)", False),
    "Mean.backward": ("rearrange", "self.spread(dy / self.count)", "self.spread(dy)", True),
    "CrossEntropy.backward": ("loss", "return self.dz *", "return 2 * self.dz *", True),
    "Parameter.accumulate_grad": (
        "parameters", "place[...] = gradient", "place[...] = 2 * gradient", True),
    "backward._sum": ("backward", "return a + b if a.ndim", "return a - b if a.ndim", True),
    "Module.__call__": (
        "module", "return self.forward(*inputs)", "return 1.5 * self.forward(*inputs)", False),
}  # fmt: skip


@pytest.mark.parametrize("name", quick(
    EDITS, "Linear.backward", "dgamma", "_A", "MixerBlock.forward", "AdamW.update", "as_rows",
    "Parameter.accumulate_grad",
))  # fmt: skip
def test_an_edit_shows(tmp_path, untouched, device, name):
    module, before, after, wrong = EDITS[name]
    path = page(copied(tmp_path), module)
    source = path.read_text(encoding="utf-8")
    assert before in source, f"{module}.py has changed: so must this test"
    path.write_text(source.replace(before, after, 1), encoding="utf-8")
    approximate = "none" if name == "erf" else "tanh"
    weights, said = trained(tmp_path, device, approximate)
    assert far(weights, untouched(device, approximate)[0]) > CHANGE
    assert f"{module}.py edited" in said["status"]
    assert not (wrong and said["right"]), "gradcheck finds nothing"


def test_plain_code_computes_the_same_but_for_rounding(tmp_path, untouched, device):
    """Or the test above would show nothing."""
    copied(tmp_path)
    weights, said = trained(tmp_path, device, MINIMIXER_KERNELS="reference")
    assert said["fast"] == 0 and said["right"]
    assert 0 < far(weights, untouched(device)[0]) < ROUNDING


def docstrings(source):
    """Each says something else."""
    lines = source.split("\n")
    for part in ast.walk(ast.parse(source)):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        if isinstance(part, kinds) and ast.get_docstring(part):
            number = part.body[0].lineno - 1
            new = '"""Something else.\n\n  # no comment '
            lines[number] = lines[number].replace('"""', new, 1)
    return "\n".join(lines)


def comments(source):
    """One more beside each definition, on a line of its own and inside brackets."""
    source = re.sub(r"(?m)^(class|def|import) (.*[):a-z])$", r"# new\n\1 \2  # new", source)
    return re.sub(r"(?m)^(    def .*)\($", r"\1(  # new", source)


DRESSES = {
    "docstrings": docstrings, "comments": comments,
    "blank lines": lambda s: re.sub(r"(?m)^(class|def|    def|    @)", r"\n   \n\1", s) + "\n\n",
    "line ends": lambda source: source.replace("\n", "\r\n"),
    "byte order mark": lambda source: "\ufeff" + source,
}  # fmt: skip


@pytest.mark.parametrize("name", DRESSES)
def test_the_digest_does_not_see_what_means_nothing(name):
    for path in stood_for().values():
        source = (ROOT / path).read_text(encoding="utf-8")
        changed = DRESSES[name](source)
        assert changed != source
        found = unchanged.digest(unchanged.decode_source(changed.encode()))
        assert found == unchanged.digest(source), path


@pytest.mark.parametrize("name", quick([*DRESSES, "all"], "all"))
def test_an_edit_that_means_nothing_changes_no_bit(tmp_path, untouched, device, name):
    copied(tmp_path)
    for path in stood_for().values():
        source = (tmp_path / path).read_bytes().decode()
        for change in DRESSES.values() if name == "all" else [DRESSES[name]]:
            source = change(source)
        (tmp_path / path).write_bytes(source.encode())
    weights, said = trained(tmp_path, device)
    np.testing.assert_array_equal(weights, untouched(device)[0])
    assert said == untouched(device)[1] and said["status"] == "kernels: fast"


def test_without_source_fast_forms_run_unchecked(tmp_path, untouched, device):
    package = copied(tmp_path)
    python(tmp_path, "-m", "compileall", "-q", "-b", package)
    for path in package.rglob("*.py"):
        path.unlink()
    weights, said = trained(tmp_path, device)
    np.testing.assert_array_equal(weights, untouched(device)[0])
    assert said["status"] == "kernels: fast (unchecked: there is no source)"
    assert said["fast"] == untouched(device)[1]["fast"]


LOOK = """
import sys, importlib
import numpy as np
package = importlib.import_module(sys.argv[1])
print(package.kernels.status())
F = package.functional
F.GELU.forward = lambda self, x, approximate: 5 * x
print((F.gelu(np.ones(100_000, "float32")).data == 5).all())
"""


@pytest.mark.parametrize("name, edited", [
    ("minimixer", True), ("own", False), ("own", True), ("vendor.minimixer", False),
])  # fmt: skip
def test_a_copy_may_have_another_name_or_lie_in_an_archive(tmp_path, name, edited):
    package = edited_copy(tmp_path) if edited else copied(tmp_path)
    there = tmp_path.joinpath("other", *name.split("."))
    there.parent.mkdir(parents=True)
    package.rename(there)
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "other")
    for place in tmp_path / "other", tmp_path / "archive.zip":
        first, seen = python(tmp_path, "-c", LOOK, name, paths=[place]).stdout.splitlines()
        assert ("erf.py edited" in first) == edited and edited == (first != "kernels: fast")
        assert seen == "True"


@pytest.mark.parametrize("text, choice", [
    (None, "auto"), (None, "reference"), ("<<<<<<< ours\n{}", "auto"), ("{}", "reference"),
])  # fmt: skip
def test_without_digests_the_plain_code_runs_until_they_are_renewed(tmp_path, text, choice):
    file = copied(tmp_path) / "kernels" / unchanged.FILE.name
    file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    done = python(tmp_path, "-c", LOOK, "minimixer")
    assert "model/block.py, nn/functional.py, " in done.stdout and done.stdout.endswith("True\n")
    python(tmp_path, *RENEW_UNTESTED, MINIMIXER_KERNELS=choice)
    assert file.read_bytes() == unchanged.FILE.read_bytes(), f"digests.json is stale: {RENEW}"


@pytest.mark.parametrize("module, before, after", [
    ("functional", "_A", "_COEFFICIENT"), ("block", "MixerMLP", "Mixing"),
    ("layer_norm", "normalize", "to_normal"),
])  # fmt: skip
def test_a_name_that_fast_forms_need_may_go(tmp_path, module, before, after):
    """It need not be there for the package to be imported; what is wrong with kernels/ is said."""
    package = copied(tmp_path)
    book = [path for path in package.glob("*/*.py") if path.parent.name != "kernels"]
    for path in book:
        source = path.read_bytes().decode()
        if path.stem == module or module != "functional":
            path.write_bytes(re.sub(rf"\b{before}\b", after, source).encode())
    code = "import minimixer as m; m.Mixer(8, 4, 1, 4, 2, 8)(m.Tensor([[[[0.5] * 3] * 8] * 8])); "
    done = python(tmp_path, "-c", code + "print(m.kernels.status())")
    assert done.stdout.startswith("kernels: the plain code runs, edited: the fast forms need more")
    assert f"'{before}'" in done.stdout
    fused = package / "kernels/fused.py"
    fused.write_bytes(fused.read_bytes().replace(b"import recompute", b"import recomputed"))
    for path in book:
        shutil.copy(ROOT / "minimixer" / path.relative_to(package), path)
    done = python(tmp_path, "-c", "import minimixer", works=False)
    assert "cannot import name 'recomputed'" in done.stderr


# ---- digests ------------------------------------------------------------------------------------


def stood_for():
    """The modules that fast forms stand for: {name: its file}."""
    names = sorted({module for _, _, modules in kernels._table for module in modules})
    return {name: f"minimixer/{name.replace('.', '/')}.py" for name in names}


def test_renewing_makes_an_edit_the_plain_code(tmp_path):
    edited_copy(tmp_path)
    ask = RENEW_UNTESTED[:2]
    said = [python(tmp_path, *words) for words in (ask, RENEW_UNTESTED, ask)]
    assert "erf.py edited" in said[0].stdout and said[2].stdout == "kernels: fast\n"


@pytest.mark.parametrize("right", [True, False])
def test_the_tests_before_renewing_run_the_fast_forms(tmp_path, right):
    """Of what was edited too, or they would compare plain code with plain code."""
    digests = edited_copy(tmp_path) / "kernels/digests.json"
    (tmp_path / "tests").mkdir()
    test = f"def test(): assert {right} and kernels.status() == 'kernels: fast'\n"
    for name in ("kernels", "cpu_kernels", "operations"):
        source = f"from minimixer import kernels\n{test}"
        (tmp_path / f"tests/test_{name}.py").write_text(source, encoding="utf-8")
    before = digests.read_bytes()
    done = python(tmp_path, *RENEW.split()[1:], works=right, MINIMIXER_KERNELS="auto")
    assert done.returncode == (0 if right else 1), done.stdout
    assert (digests.read_bytes() == before) == (not right)
    assert right or "the tests failed: digests.json stays as it is" in done.stderr


TRICKY = '''"""A module with a docstring # and no comment."""  # a comment

import math


class Thing:
    r"""A docstring
    of two lines."""

    # what comes
    name = f"{math.pi:.3f} # no comment {'nested'!r}"

    async def speak(self, a, b=(  # a comment inside brackets

        "# a string", '"""',
    )):
        """Another."""
        text = """no docstring

          # with lines~~~
        """
        return f"""{text}
        and {a   +   b}~~~

        # more"""


if True:
    "a string alone"
    x = 1 ; y = \\
        2
f"not a docstring {x}"
'''.replace("~", " ")  # blanks at the end of a line
TRICKY_DIGEST = "b379fd1b12c448c0ddc9743f5813b873"


def test_the_digest_of_a_tricky_source():
    """Of what is left without docstrings, comments, blank lines and blanks at the ends of lines."""
    assert unchanged.digest(TRICKY) == TRICKY_DIGEST


@pytest.mark.parametrize("before, after", [
    ("# no comment {", "# a comment {"), ("'nested'", "'n'"), ('"# a string"', '"#"'),
    ("2\n", "3\n"), ("docstring\n\n          #", "docstring\n          #"),
    ("lines   \n", "lines\n"), ("}   \n\n", "}\n\n"), ("}   \n\n", "}   \n"),
    ("not a docstring {", "another {"),
])  # fmt: skip
def test_the_digest_sees_what_means_something(before, after):
    assert before in TRICKY
    assert unchanged.digest(TRICKY.replace(before, after, 1)) != unchanged.digest(TRICKY)


def other_pythons():
    """Those on this machine that can read the package's page about digests, from 3.10 on."""
    found = [Path(p) for n in range(10, 20) if (p := shutil.which(f"python3.{n}"))]
    found += Path.home().glob(".pyenv/versions/3.1[0-9].*/bin/python")
    found += Path.home().glob(".local/share/uv/python/cpython-3.1[0-9]*/bin/python3")
    return [path for path in found if path.parent.name != "shims"]  # pyenv's, which may refuse


@pytest.mark.parametrize("path", other_pythons() or [sys.executable], ids=str)
def test_the_digest_is_the_same_on_every_python(tmp_path, path):
    sources = {m: (ROOT / path).read_text(encoding="utf-8") for m, path in stood_for().items()}
    sources["tricky"] = TRICKY
    given = tmp_path / "sources.json"
    given.write_text(json.dumps(sources), encoding="utf-8")
    code = (
        "import json, runpy, sys; digest = runpy.run_path(sys.argv[1])['digest']; "
        "sources = json.load(open(sys.argv[2], encoding='utf-8')); "
        "print(json.dumps({name: digest(source) for name, source in sources.items()}))"
    )
    command = [path, "-I", "-c", code, ROOT / "minimixer/kernels/unchanged.py", given]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    assert json.loads(done.stdout) == {k: unchanged.digest(v) for k, v in sources.items()}


# ---- by patching --------------------------------------------------------------------------------


@pytest.fixture
def fast_calls(monkeypatch):
    """(node, "forward" or "backward") of each call of a fast form, in order."""
    calls = []

    def noted(plain, method):
        def called(self, *inputs, **options):
            calls.append((self, method))
            return plain(self, *inputs, **options)

        return called

    classes = [form for forms in forms.table.values() for form in forms.values()]
    for kind in {c for c in classes if isinstance(c, type) and issubclass(c, node.Fast)}:
        for method in ("forward", "backward"):
            monkeypatch.setattr(kind, method, noted(getattr(kind, method), method))
    return calls


def doubled(original):
    def function(*inputs, **options):
        found = original(*inputs, **options)
        several = isinstance(found, tuple)
        return tuple(v if v is None else 2 * v for v in found) if several else 2 * found

    return function


def pushing(original):
    """An update that goes further."""
    return lambda self, w, *others: (np.add(w, 1, out=w), original(self, w, *others))[1]


def twice_as_much(original):
    return lambda self, gradient, read_as=None: original(self, 2 * gradient, read_as)


PATCHES = {f"{called}.{name}": (owner, name, doubled) for called, owner, names in (
    ("Linear", F.Linear, "forward backward apply"),
    ("LinearFirst", F.LinearFirst, "forward backward"),
    ("GELU", F.GELU, "forward backward apply"), ("LayerNorm", F.LayerNorm, "forward backward"),
    ("Mean", rearrange_py.Mean, "backward"), ("CrossEntropy", loss_py.CrossEntropy, "backward"),
    ("Add", ops_py.Add, "forward backward"),
    ("functional", F, "linear linear_first gelu layer_norm matmul as_rows sum_rows gelu_and_slope"),
    ("functional._PHI", F._PHI, "tanh"),
    ("layer_norm", layer_norm_py, "normalize gradients as_rows"), ("ops", ops_py, "add"),
    ("Tensor", tensor_py.Tensor, "__add__"), ("Mixer", Mixer, "trunk"),
    ("MixerMLP", block_py.MixerMLP, "forward hidden __call__"),
    ("MixerBlock", block_py.MixerBlock, "forward"),
    ("nn.LayerNorm", nn_py.LayerNorm, "forward __call__"), ("nn.Linear", nn_py.Linear, "forward"),
    ("StochasticDepth", nn_py.StochasticDepth, "forward keep"), ("Module", Module, "__call__"),
    ("backward", backward_py, "_sum run_back"), ("norms", norms_py, "gradient_norm"),
) for name in names.split()} | {
    "functional._A": (F, "_A", lambda value: 10 * value),
    "Parameter.accumulate_grad": (Parameter, "accumulate_grad", twice_as_much),
    "AdamW.update": (AdamW, "update", pushing), "Adam.update": (Adam, "update", pushing),
}  # fmt: skip


def put(monkeypatch, owner, name, change):
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, change(owner[name]))
    else:
        monkeypatch.setattr(owner, name, change(getattr(owner, name)), raising=False)


@pytest.fixture(scope="module")
def unpatched():
    """By device, filled by the first test that asks: what `steps` gives, and the calls it makes."""
    return {}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_shows_at_once_and_is_gone_when_undone(device, name, fast_calls, unpatched):
    if device not in unpatched:
        unpatched[device] = steps(device), [type(n) for n, _ in fast_calls]
    before, calls = unpatched[device]
    with pytest.MonkeyPatch.context() as patch:
        put(patch, *PATCHES[name])
        assert far(steps(device), before) > CHANGE
        assert " patched" in kernels.status()
        with reference_functions():
            plain = steps(device)
        assert far(steps(device), plain) < ROUNDING
    fast_calls.clear()
    np.testing.assert_array_equal(steps(device), before)
    assert [type(n) for n, _ in fast_calls] == calls
    assert kernels.status() == "kernels: fast"


@pytest.mark.parametrize("owner, name, changes", [
    (F, "erf", {"approximate": "none"}), (mixer_py, "recompute", {"checkpoint_blocks": True}),
    (nn_py.RandomLayer, "keep", {}), (norms_py, "matmul", {}),
])  # fmt: skip
def test_a_patch_of_what_other_models_use(device, owner, name, changes):
    before = steps(device, **changes)
    with pytest.MonkeyPatch.context() as patch:
        put(patch, owner, name, doubled)
        assert far(steps(device, **changes), before) > CHANGE
    np.testing.assert_array_equal(steps(device, **changes), before)
    scores = Tensor(to_device(np.ones((2, 3), "float32"), device))
    labels = to_device(np.array([0, 3]), device)
    with pytest.MonkeyPatch.context() as patch:  # labels are checked for a patched loss
        put(patch, loss_py.CrossEntropy, "forward", doubled)
        with pytest.raises(ValueError, match="class indices from 0 to 3 for 3 classes"):
            F.cross_entropy(scores, labels)


def test_a_patch_of_a_products_helper(monkeypatch):
    """matmul does not look at each call, which would be dear; its fast form on the CPU calls it."""
    a, b, out = (np.ones((64, 64), "float32") for _ in range(3))
    monkeypatch.setattr(products_py, "plain_matmul", lambda a, b, out, *_: out.fill(5) or out)
    assert (products_py.matmul(a, b, out=out) == 5).all()


@pytest.mark.parametrize("owner, name, value", [
    (optimizer_py, "STEP", 2), (F, "_A", np.ones(3)), (F, "_A", 0.05), (F, "any", len),
    (nn_py.RandomLayer, "layer", 1), (F.GELU, "quiet", False), (Module, "training", False),
    (nn_py.LayerNorm, "forward", None), (F, "relu", ...),
])  # fmt: skip
def test_a_patch_is_seen(owner, name, value):
    with pytest.MonkeyPatch.context() as patch:
        if value is ...:
            patch.delattr(owner, name)
        else:
            patch.setattr(owner, name, value, raising=False)
        assert "patched" in kernels.status()
    assert kernels.status() == "kernels: fast"


@pytest.mark.parametrize("ask, choice", [
    ("kernels.use('auto')", "reference"), ("importlib.reload(kernels)", "auto"),
])  # fmt: skip
def test_what_was_patched_before_fast_forms_were_asked_for(tmp_path, ask, choice):
    code = f"""if True:
        import importlib
        import numpy as np
        from minimixer import functional as F, kernels
        F.GELU.forward = lambda self, x, approximate: 5 * x
        {ask}
        assert (F.gelu(np.ones(100_000, "float32")).data == 5).all()
        print(kernels.status())
    """
    copied(tmp_path)
    done = python(tmp_path, "-c", code, MINIMIXER_KERNELS=choice)
    assert "functional.py patched" in done.stdout


def test_what_python_writes_down_is_no_patch(device, monkeypatch):
    """Annotations that somebody asked for, a warning that was given, an attribute that was set."""
    assert nn_py.LayerNorm.__annotations__ is not None
    monkeypatch.setitem(vars(F), "__warningregistry__", {})
    with pytest.MonkeyPatch.context() as patch:  # put back, it stands elsewhere
        patch.delattr(F, "relu")
    make_model(device).norm.note = 1
    assert kernels.status() == "kernels: fast"


# ---- by replacing -------------------------------------------------------------------------------


MODULES = [path for path, _ in Mixer(**SIZES).named_modules()]


def replaced(model, path, change):
    """The model with change(module) in the place of the module at a path."""
    owner, _, last = path.rpartition(".")
    if not last:
        return change(model)
    if last.isdecimal():
        blocks = getattr(model, owner)
        blocks[int(last)] = change(blocks[int(last)])
    else:
        owner = dict(model.named_modules())[owner]
        setattr(owner, last, change(getattr(owner, last)))
    return model


def of_a_subclass(**methods):
    """module -> the same, of a subclass with these methods."""

    def change(module):
        new = object.__new__(type("Own", (type(module),), methods))
        vars(new).update(vars(module))
        return new

    return change


def bent(original):
    """Its result and the square of that: LayerNorm would take back what only doubles."""

    def function(*inputs):
        y = original(*inputs)
        return y + y * y

    return function


def own_forward(module):
    module.forward = bent(module.forward)
    return module


CHANGES = {
    "a subclass": lambda module: of_a_subclass(forward=bent(type(module).forward))(module),
    "a subclass that is called otherwise": of_a_subclass(__call__=bent(Module.__call__)),
    "its own forward": own_forward,
}


@pytest.mark.parametrize("change", [*CHANGES, "a subclass that changes nothing"])
def test_each_module_replaced_takes_effect(device, change):
    before = outcome(make_model(device))
    for path in MODULES:
        model = replaced(make_model(device), path, CHANGES.get(change, of_a_subclass()))
        found = as_the_plain_code_has_it(model)
        assert (far(found, before) > CHANGE) == (change in CHANGES), path


def test_taken_back_the_fast_forms_run_again(device):
    names = ("", ".norm1", ".token_mixing", ".norm2", ".channel_mixing", ".drop1", ".drop2")
    inside = [f"blocks.{i}{name}" for i in range(2) for name in names]
    assert sorted(MODULES) == sorted(["", "stem", *inside, "norm", "head"])  # none is left out
    model = make_model(device)
    before = outcome(model)
    for path, module in model.named_modules():
        own_forward(module)
        assert far(outcome(model), before) > CHANGE, path
        del module.forward
        np.testing.assert_array_equal(outcome(model), before)


@pytest.mark.parametrize("name, axis", [("token_mixing", -1), ("channel_mixing", 0)])
def test_an_mlp_along_the_other_axis(device, name, axis):
    """An ablation: both mix channels, or both tokens. There are as many of the one as the other."""
    model = make_model(device, hidden_dim=16)
    for block in model.blocks:
        mlp = block_py.MixerMLP(16, 8, axis, "tanh")
        mlp.draw_weights(0, 1)
        mlp.b2.data = np.arange(16)
        setattr(block, name, mlp)
    model.parameters()
    as_the_plain_code_has_it(model.to(device))
    model = make_model(device)
    before = outcome(model)
    for block in model.blocks:  # the plain code takes any axis but the first for the last
        block.channel_mixing.axis = 2
    assert far(outcome(model), before) < ROUNDING


@pytest.mark.parametrize("layer", ["token_mixing", "channel_mixing"])
@pytest.mark.parametrize("bias", ["b1", "b2"])
def test_an_mlp_without_a_bias(device, layer, bias):
    model = make_model(device)
    setattr(getattr(model.blocks[0], layer), bias, None)
    as_the_plain_code_has_it(model)


def test_a_parameter_of_a_subclass_takes_its_gradients_itself(device):
    """Gradients are written where they belong at once, if nobody else wants to see them first."""
    seen = []

    class Own(Parameter):
        __slots__ = ()

        def accumulate_grad(self, gradient, read_as=None):
            seen.append(gradient is self.grad_window)
            super().accumulate_grad(gradient, read_as)

    model = make_model(device)
    before = outcome(model)
    for _, module in model.named_modules():
        for name, value in [*vars(module).items()]:
            if isinstance(value, Parameter):
                vars(module)[name] = Own(value.data)
    model.parameters()
    seen.clear()
    np.testing.assert_array_equal(outcome(model), before)
    assert seen == [False] * len(model.parameters())


@pytest.mark.parametrize("own", ["a subclass", "its own"])
def test_a_model_with_its_own_patches(device, own):
    def half(model, images):
        return 0.5 * plain(model, images)

    plain, model = Mixer.patches, make_model(device).eval()
    images = given(model)[0]
    with no_grad():
        expected = to_numpy(model(0.5 * images).data)
        if own == "a subclass":
            model = of_a_subclass(patches=half)(model)
        else:
            model.patches = half.__get__(model)
        assert far(to_numpy(model(images).data), expected) < ROUNDING


# ---- subclasses of what is no Module ------------------------------------------------------------

FUNCTIONS = {
    "GELU": (F.GELU, [(64, 1024)], {"approximate": "tanh"}),
    "Linear": (F.Linear, [(64, 1024), (1024, 64), (64,)], {}),
    "LayerNorm": (F.LayerNorm, [(64, 1024), (1024,), (1024,)], {"epsilon": 1e-6}),
    "CrossEntropy": (
        loss_py.CrossEntropy, [(64, 1024)],
        {"target": np.arange(64), "smoothing": 0.0, "reduction": "mean"},
    ),
    "Mean": (rearrange_py.Mean, [(64, 1024)], {"axis": 0}),
}  # fmt: skip


@pytest.mark.parametrize("method", ["forward", "backward"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_subclass_of_a_function_runs_itself(device, name, method):
    plain, shapes, options = FUNCTIONS[name]
    options = {k: to_device(v, device) if k == "target" else v for k, v in options.items()}
    own = type("Own", (plain,), {method: doubled(getattr(plain, method))})
    rng = np.random.default_rng(3)
    values = [to_device(rng.standard_normal(s).astype("float32"), device) for s in shapes]
    found = []
    for function in (plain, type("Same", (plain,), {}), own):
        inputs = [Tensor(v, requires_grad=True) for v in values]
        y = function.apply(*inputs, **options)
        assert function is plain or type(y.node) is function
        y.sum().backward()
        found.append([to_numpy(a) for a in (y.data, *[x.grad for x in inputs])])
    for i, (fast, copied, changed) in enumerate(zip(*found, strict=True)):
        size = abs(fast).max() + 1e-3
        assert abs(copied - fast).max() < 1e-4 * size
        factor = 2 if (i > 0) == (method == "backward") else 1
        assert abs(changed - factor * fast).max() < 1e-4 * size


@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize("own", ["a subclass", "its own"])
def test_an_optimizer_with_another_update_runs_that(device, kind, own):
    def update(w, g, state, lr, decay, scalars):
        w += 1

    model = make_model(device)
    before = to_numpy(model.head.weight.data).copy()
    if own == "a subclass":
        kind = type("Own", (kind,), {"update": staticmethod(update)})
    optimizer = kind(model.parameters())
    if own == "its own":
        optimizer.update = update
    outcome(model)
    optimizer.step()
    np.testing.assert_array_equal(to_numpy(model.head.weight.data), before + 1)


# ---- unchanged code -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_unchanged_code_runs_the_fast_forms(device, fast_calls, depth):
    model = make_model(device, stochastic_depth=depth)
    outcome(model)
    mlp, norm = (cpu, cpu_layer_norm) if device == "cpu" else (gpu_mlp, gpu_layer_norm)
    done, blocks = Counter((type(n), method) for n, method in fast_calls), len(model.blocks)
    for method in ("forward", "backward"):
        assert done[mlp.FastMLP, method] == 2 * blocks
        assert done[norm.FastAddLayerNorm, method] == 2 * blocks + 1
    if device != "cpu":
        assert {gpu.FastLinear, gpu.FastMean} <= {type(n) for n, _ in fast_calls}


def test_backward_is_of_the_node_that_did_forward(device, fast_calls):
    """Also if another choice was made in between, or the plain code patched."""
    model = make_model(device)
    images, labels = given(model)
    fast = outcome(model)
    fast_calls.clear()
    with reference_functions():
        plain = outcome(model)
    assert not fast_calls and far(fast, plain) < ROUNDING
    for first, expected in (("auto", fast), ("reference", plain)):
        fast_calls.clear()
        model.zero_grad()
        kernels.use(first)
        try:
            scores = model(images)
            loss = F.cross_entropy(scores, labels)
            kernels.use("reference" if first == "auto" else "auto")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(F.LayerNorm, "forward", doubled(F.LayerNorm.forward))
                patch.setattr(F.Linear, "forward", doubled(F.Linear.forward))
                loss.backward()
        finally:
            kernels.use("auto")
        gradients = np.concatenate([to_numpy(p.grad).ravel() for p in model.parameters()])
        assert far(gradients, expected[-gradients.size :]) < ROUNDING
        done = [{id(n) for n, m in fast_calls if m == method} for method in ("forward", "backward")]
        assert done[0] == done[1] and bool(done[0]) == (first == "auto")


# ---- the choice ---------------------------------------------------------------------------------


def test_the_environment_chooses(tmp_path):
    copied(tmp_path)
    code = "from minimixer import engine as e, kernels as k; print(k.status(), len(e.forms.table))"
    plain = "kernels: the plain code runs (MINIMIXER_KERNELS, or kernels.use) 0\n"
    fast = f"kernels: fast {len(kernels._table)}\n"
    said = {"reference": plain, "auto": fast, "": fast}
    for choice, adds in (("lean", "in less memory"), ("untimed", "products untimed")):
        said[choice] = fast.replace("fast", f"fast, {adds}")
    for choice, expected in said.items():
        assert python(tmp_path, "-c", code, MINIMIXER_KERNELS=choice).stdout == expected
    done = python(tmp_path, "-c", code, works=False, MINIMIXER_KERNELS="fast")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "ValueError: MINIMIXER_KERNELS: 'auto', 'lean', 'untimed' or 'reference', not 'fast'"
    )


def test_forms_of_ones_own_keep_none_of_the_others_out(tmp_path):
    """Registered first, while the plain code was wanted."""
    (tmp_path / "own.py").write_text("def double(x):\n    return x + x\n", encoding="utf-8")
    code = """import own
from minimixer import engine, kernels
source = open(own.__file__, encoding="utf-8").read()
kernels.register(own.double, {"own": kernels.unchanged.digest(source)}, cupy=None)
print(engine.forms.table)
kernels.use("auto")
print(kernels.status(), len(engine.forms.table), own.double in engine.forms.table)"""
    copied(tmp_path)
    expected = f"{{}}\nkernels: fast {len(kernels._table) + 1} True\n"
    assert python(tmp_path, "-c", code, MINIMIXER_KERNELS="reference").stdout == expected


def test_use_and_status():
    with reference_functions():
        assert forms.table == {} and "plain code runs" in kernels.status()
        for wrong in ("fast", None, 1, ["auto"]):
            with pytest.raises(ValueError, match=r"kernels\.use: 'auto', 'lean', .*, got"):
                kernels.use(wrong)
        assert forms.table == {}
    assert kernels.status() == "kernels: fast" and len(forms.table) == len(kernels._forms)


# ---- chosen once --------------------------------------------------------------------------------


def test_no_fast_form_falls_back_inside():
    """It is asked before whether it suits; `super().forward` in it would be a second choice."""
    for path in sorted((ROOT / "minimixer/kernels").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for part in ast.walk(ast.parse(source)):
            if isinstance(part, ast.Attribute):
                found = ast.unparse(part)
                assert part.attr != "__dict__", f"{path.name}:{part.lineno} {found}"
                assert not re.fullmatch(r"super\(.*\)\.(forward|backward)", found), path.name
