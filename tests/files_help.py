"""Files that tests make by hand: archives, arrays under any header; and what a refusal may cost."""

import io
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from minimixer.training.checkpoint import load_model


def assert_refused(path, call=load_model, match=None, seconds=1.0, megabytes=50):
    """A ValueError that names the file, at once, without memory for what is only claimed."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            call(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message and "\x1b" not in message
    assert time.perf_counter() - begin < seconds and peak < megabytes << 20
    return message


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def npy_with(header, data=b"", version=(1, 0), length=None):
    header = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + header + data


def header(shape, descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
