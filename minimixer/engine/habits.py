"""What is typed out of habit: PyTorch's names and NumPy's functions, and single numbers.

What costs a line is here, with PyTorch's meaning. What is done in another way says so, for Tensors
and for all that comes later: an error that names what to write is worth more than a second way.

>>> from minimixer import Tensor
>>> x = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
>>> f"{x.mean():.2f}", x.flatten().shape, x.unsqueeze(0).shape, int(x[0].argmax())
('3.50', (6,), (1, 2, 3), 2)
>>> x.clamp(0, 1)
Traceback (most recent call last):
AttributeError: Tensor has no clamp here: write x.clip(low, high)
"""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import more_ops, more_rearrange, ops
from .arrays import describe, to_numpy
from .autograd import Variable
from .checks import whole
from .grad_mode import is_grad_enabled

if TYPE_CHECKING:
    from .tensor import Tensor

INSTEAD = {  # where a name of PyTorch's or NumPy's is looked for; the name; what to write here
    "Tensor": {
        "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "pow": "x ** y",
        "matmul": "x @ y", "mm": "x @ y", "bmm": "x @ y", "dot": "x @ y", "neg": "-x",
        "eq": "x == y", "ne": "x != y", "lt": "x < y", "le": "x <= y", "gt": "x > y",
        "ge": "x >= y", "add_": "x = x + y: nothing changes in place",
        "sub_": "x = x - y: nothing changes in place",
        "mul_": "x = x * y: nothing changes in place",
        "div_": "x = x / y: nothing changes in place",
        "zero_": "x.data[...] = 0, or optimizer.zero_grad() for gradients",
        "fill_": "x.data[...] = value", "copy_": "x.data[...] = values",
        "requires_grad_": "x.requires_grad = True, or Tensor(x, requires_grad=True)",
        "clone": "x * 1, which keeps gradients, or Tensor(x.data.copy())",
        "copy": "x.data.copy(), or copy.deepcopy(x)", "contiguous": "x alone: layouts need no care",
        "astype": "x.to(dtype)", "type": "x.to(dtype)", "int": "x.to('int32')",
        "bool": "x.to('bool'), or x != 0", "clamp": "x.clip(low, high)", "square": "x * x",
        "sigmoid": "1 / (1 + (-x).exp())", "norm": "(x * x).sum().sqrt()", "isnan": "x != x",
        "softmax": "functional.softmax(x)", "log_softmax": "functional.log_softmax(x)",
        "gelu": "functional.gelu(x)", "masked_fill": "where(mask, value, x)",
        "gather": "x[rows, columns]", "index_select": "x[indices]", "take": "x[indices]",
        "split": "x[:n], x[n:]", "chunk": "x[:n], x[n:]", "expand": "x alone: it broadcasts",
        "repeat": "concatenate([x] * n, axis)", "t": "x.T", "mT": "x.swapaxes(-1, -2)",
        "prod": "x.log().sum().exp(), or a Function of your own", "grad_fn": "x.node",
        "is_leaf": "x.node is None", "is_cuda": "x.device != 'cpu'",
        "sort": "np.sort(x.numpy()), which has no gradient",
        "argsort": "np.argsort(x.numpy())", "topk": "np.argsort(x.numpy())",
        "cumsum": "np.cumsum(x.numpy()), which has no gradient",
    },
    "Module": {
        "cuda": '.to("cuda")', "cpu": '.to("cpu")', "float": '.to("float32")',
        "double": '.to("float64")', "half": 'Mixer.set_precision("float16")',
        "bfloat16": 'Mixer.set_precision("bfloat16")',
        "add_module": "setattr(module, name, layer)",
        "register_module": "setattr(module, name, layer)",
        "register_parameter": "setattr(module, name, Parameter(...))",
        "register_buffer": "an attribute that holds the array, which state_dict() leaves out",
        "apply": "a loop over modules()", "get_submodule": "dict(module.named_modules())[path]",
        "get_parameter": "dict(module.named_parameters())[path]", "buffers": "parameters()",
    },
    "Optimizer": {
        "param_groups": "lr, lr_factor", "add_param_group": "a new optimizer with groups",
    },
    "functional": {
        "dropout": "nn.Dropout, whose draws follow the model's seed and step",
        "nll_loss": "cross_entropy of the scores", "tanh": "x.tanh()",
        "sigmoid": "((x / 2).tanh() + 1) / 2",
        "binary_cross_entropy": "cross_entropy with two classes",
        "l1_loss": "(x - y).abs().mean()", "mlp": "linear, gelu, linear",
        "add_layer_norm": "layer_norm(x + y, ...)", "add_bias": "x + bias",
    },
    "nn": {
        "CrossEntropyLoss": "functional.cross_entropy", "MSELoss": "functional.mse_loss",
        "Softmax": "functional.softmax", "LogSoftmax": "functional.log_softmax",
        "ModuleList": "a list: layers in it are found",
        "ModuleDict": "a dict: layers in it are found", "ParameterList": "a list",
        "Identity": "Sequential()", "Tanh": "x.tanh()",
        "utils": "optimizer.clip_grad_norm(max_norm) for clip_grad_norm_",
        "init": "lecun_normal, or weight.data = ...",
    },
    "minimixer": {
        "cat": "concatenate(tensors, axis)", "save": "model.save(path)", "load": "Mixer.load(path)",
        "from_numpy": "Tensor(array)", "zeros": "Tensor(np.zeros(shape))",
        "ones": "Tensor(np.ones(shape))", "DataLoader": "data.Batches(images, labels, batch_size)",
        "manual_seed": "seed=, which models and batches have",
        "clip_grad_norm_": "optimizer.clip_grad_norm(max_norm)",
    },
}  # fmt: skip


def missing(where: str, name: str, owner: str) -> AttributeError:
    """To be raised by the __getattr__ of `owner`, which has no `name`; `where`: its part of
    INSTEAD."""
    hint = INSTEAD.get(where, {}).get(name)
    if hint is None:
        return AttributeError(f"{owner} has no attribute {name!r}")
    return AttributeError(f"{owner} has no {name} here: write {hint}")


class _Instead:
    """A name that Tensors lack. A __getattr__, as the others have it, would slow every attribute
    down."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, tensor: Any, kind: type) -> Any:
        if tensor is None:
            return self
        raise missing("Tensor", self.name, kind.__name__)


class _Ufunc:
    """What NumPy asks the class for, on `np.exp(x)` and on `array + x`, is `_call_ufunc`. CuPy asks
    the Tensor, and None lets it leave `array + x` to `x.__radd__`."""

    def __get__(self, tensor: Any, kind: type) -> Any:
        return _call_ufunc if tensor is None else None


def _call_ufunc(tensor: Any, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    name = ufunc.__name__
    if method == "__call__" and not options:
        if name in _SIGNS:  # of an array and a Tensor: the Tensor's method for the other side
            sign, mirrored = _SIGNS[name]
            first, second = inputs
            if isinstance(first, Habits):
                return sign(first, second)
            return getattr(second, mirrored)(first)
        for page in (ops, more_ops):
            if hasattr(page, name):
                return getattr(page, name)(*inputs)
    raise _no_gradient(name)


_SIGNS: dict[str, tuple[Callable[..., Any], str]] = {
    "equal": (operator.eq, "__eq__"), "not_equal": (operator.ne, "__ne__"),
    "less": (operator.lt, "__gt__"), "less_equal": (operator.le, "__ge__"),
    "greater": (operator.gt, "__lt__"), "greater_equal": (operator.ge, "__le__"),
    "bitwise_and": (operator.and_, "__rand__"), "bitwise_or": (operator.or_, "__ror__"),
    "bitwise_xor": (operator.xor, "__rxor__"), "remainder": (operator.mod, "__rmod__"),
    "floor_divide": (operator.floordiv, "__rfloordiv__"),
}  # fmt: skip


def _no_gradient(name: str) -> TypeError:
    return TypeError(
        f"np.{name} of a Tensor would have no gradient: give it x.numpy() for the values alone, or "
        "use the Tensor's own operations"
    )


_METHODS = {name: name for name in (
    "sum", "mean", "max", "min", "argmax", "argmin", "any", "all", "reshape", "transpose",
    "swapaxes", "squeeze", "clip",
)} | {"amax": "max", "amin": "min", "permute_dims": "transpose"}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "concatenate": more_rearrange.concatenate, "stack": more_rearrange.stack,
    "where": more_ops.where,
}  # fmt: skip

# Of these nobody wants a gradient.
_CONSTANT = ("copy", "zeros_like", "ones_like", "full_like", "empty_like", "histogram")


class Habits:
    """What Tensor has beside its own; see the module's text."""

    __slots__ = ()
    __array_ufunc__: Any = _Ufunc()
    data: Any
    requires_grad: bool
    reshape: Callable[..., Any]  # Tensor's own, like the next
    transpose: Callable[..., Any]
    to: Callable[..., Any]

    # ---- one number -----------------------------------------------------------------------------

    def _number(self, what: str) -> Any:
        if self.data.size != 1:
            raise TypeError(
                f"{what} needs a Tensor of one element, and this one has shape {self.data.shape}: "
                "take one by an index, or .sum(), .mean(), .max()"
            )
        return self.data.item()

    def __float__(self) -> float:
        return float(self._number("float()"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __index__(self) -> int:
        if self.data.dtype.kind not in "iu":
            raise TypeError(
                f"an index must be a whole number, got {describe(self.data)}: use int(x), or "
                "x.argmax(), which gives whole numbers"
            )
        return self._number("an index")

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number("round()"), digits)

    def __format__(self, how: str) -> str:
        return format(self._number(f"the format {how!r}"), how) if how else str(self)

    def __pos__(self) -> Self:
        return self

    def __contains__(self, value: Any) -> bool:
        return bool((self.data == plain_value(value)).any())

    # ---- whole numbers and booleans -------------------------------------------------------------

    def __invert__(self) -> "Tensor":
        return _ungraded("~", lambda a, _: ~a, self, self)

    def __and__(self, other: Any) -> "Tensor":
        return _ungraded("&", operator.and_, self, other)

    def __or__(self, other: Any) -> "Tensor":
        return _ungraded("|", operator.or_, self, other)

    def __xor__(self, other: Any) -> "Tensor":
        return _ungraded("^", operator.xor, self, other)

    def __floordiv__(self, other: Any) -> "Tensor":
        return _ungraded("//", operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> "Tensor":
        return _ungraded("//", operator.floordiv, other, self)

    def __mod__(self, other: Any) -> "Tensor":
        return _ungraded("%", operator.mod, self, other)

    def __rmod__(self, other: Any) -> "Tensor":
        return _ungraded("%", operator.mod, other, self)

    __rand__: Any = __and__
    __ror__: Any = __or__
    __rxor__: Any = __xor__

    # ---- PyTorch's names ------------------------------------------------------------------------

    def relu(self) -> "Tensor":
        return more_ops.relu(self)

    def view(self, *shape: Any) -> "Tensor":
        return self.reshape(*shape)

    def permute(self, *axes: Any) -> "Tensor":
        return self.transpose(*axes)

    def swapaxes(self, first: int, second: int) -> "Tensor":
        """Two axes in each other's place, as PyTorch's transpose(first, second)."""
        axes = list(range(self.data.ndim))
        first, second = self._axis(first), self._axis(second)
        axes[first], axes[second] = axes[second], axes[first]
        return self.transpose(axes)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Tensor":
        """The axes from start_dim to end_dim, the last one included, become one."""
        shape = self.data.shape or (1,)
        first, last = self._axis(start_dim, len(shape)), self._axis(end_dim, len(shape))
        if first > last:
            raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        return self.reshape(
            *shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :]
        )

    def squeeze(self, axis: int | None = None) -> "Tensor":
        """Without the axes of length 1; or without this one, if its length is 1."""
        axes = range(self.data.ndim) if axis is None else [self._axis(axis)]
        shape = self.data.shape
        return self.reshape([n for i, n in enumerate(shape) if n != 1 or i not in axes])

    def unsqueeze(self, axis: int) -> "Tensor":
        """With a new axis of length 1, which is number `axis` of the result."""
        shape = list(self.data.shape)
        shape.insert(self._axis(axis, len(shape) + 1), 1)
        return self.reshape(shape)

    def _axis(self, axis: int, ndim: int | None = None) -> int:
        """Counted from the front; ValueError if there is none."""
        ndim = self.data.ndim if ndim is None else ndim
        number = whole(axis, "an axis")
        if not -ndim <= number < ndim:
            raise ValueError(f"axis {axis} is out of range for {ndim} dimensions")
        return number % ndim

    def cpu(self) -> "Tensor":
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> "Tensor":
        return self.to("cuda" if device is None else f"cuda:{device}")

    def float(self) -> "Tensor":
        return self.to("float32")

    def double(self) -> "Tensor":
        return self.to("float64")

    def half(self) -> "Tensor":
        return self.to("float16")

    def bfloat16(self) -> "Tensor":
        return self.to("bfloat16")

    def long(self) -> "Tensor":
        return self.to("int64")

    def dim(self) -> int:
        return self.data.ndim

    def numel(self) -> int:
        return self.data.size

    def tolist(self) -> Any:
        return self.data.tolist()

    # ---- wrong turns ----------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "Tensor: an element can't be assigned, since backward may need the old one: write "
            "where(mask, new, x), or x.data[...] = new before x is used"
        )

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """`np.sum(x)` is `x.sum()`, with its gradient, np.stack is stack. Others see the values,
        but where their result would lack a gradient that was asked for."""
        name = function.__name__
        if name in _FUNCTIONS and len(args) + len(options) > (name == "where"):
            return _FUNCTIONS[name](*args, **options)
        if name in _METHODS and args and isinstance(args[0], Habits):
            return getattr(args[0], _METHODS[name])(*args[1:], **options)
        found: list[bool] = []
        result = function(*_values(args, found), **_values(options, found))
        if any(found) and is_grad_enabled() and name not in _CONSTANT and _floats(result):
            raise _no_gradient(name)
        return result


for _name in INSTEAD["Tensor"]:
    setattr(Habits, _name, _Instead(_name))


def _floats(result: Any) -> bool:
    """Are there numbers in it that could have a gradient?"""
    if isinstance(result, (list, tuple)):
        return any(map(_floats, result))
    return isinstance(result, (np.ndarray, np.generic)) and result.dtype.kind in "fcV"


def _values(value: Any, found: list[bool]) -> Any:
    """`value` with arrays in place of Tensors; `found`: whether each of them wants a gradient."""
    if isinstance(value, Habits):
        found.append(value.requires_grad)
        return to_numpy(value.data)
    if isinstance(value, dict):
        return {key: _values(item, found) for key, item in value.items()}
    return type(value)(_values(v, found) for v in value) if type(value) in (list, tuple) else value


def plain_value(value: Any) -> Any:
    """The array of a Tensor; all else as it is."""
    return value.data if isinstance(value, Variable) else value


def _ungraded(sign: str, operation: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """An operation on the values, that has no gradient."""
    if is_grad_enabled() and any(isinstance(v, Variable) and v.requires_grad for v in (a, b)):
        raise TypeError(f"{sign} has no gradient: use it on x.detach()")
    try:
        with np.errstate(all="ignore"):
            return Variable.result_class(operation(plain_value(a), plain_value(b)))
    except TypeError:
        kinds = " and ".join(str(getattr(v, "dtype", repr(v))) for v in (a, b))
        raise TypeError(
            f"{sign} does not work on {kinds}: it is for integers and booleans, such as x > 0"
        ) from None
