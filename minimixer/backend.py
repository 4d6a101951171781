"""NumPy or CuPy, devices, precisions, random numbers: what engine/'s appendices have, by its names
of before there were rooms."""

from .engine.arrays import (
    Array,
    address,
    blocks,
    describe,
    device_of,
    is_array,
    namespace,
    native,
    one,
    same_device,
    to_device,
    to_numpy,
    use_device_of,
)  # fmt: skip
from .engine.devices import check_device, check_not_recorded, synchronize
from .engine.forms import current_form, form_of
from .engine.precision import (
    FLOAT_DTYPES,
    as_dtype,
    check_precision,
    is_half,
    wide,
    widen,
)  # fmt: skip
from .engine.products import add_at, matmul, sum_rows
from .engine.random import Purpose, random_bits, uniform

__all__ = [
    "FLOAT_DTYPES", "Array", "Purpose", "add_at", "address", "as_dtype", "blocks", "check_device",
    "check_not_recorded", "check_precision", "current_form", "describe", "device_of", "form_of",
    "is_array", "is_half", "matmul", "namespace", "native", "one", "random_bits", "same_device",
    "sum_rows", "synchronize", "to_device", "to_numpy", "uniform", "use_device_of", "wide", "widen",
]  # fmt: skip
