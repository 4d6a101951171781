"""Processes that tests start, and the tables that they write."""

import csv
import os
import sys
import time

import pytest

# Of Pythons that import what this one does.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def forked(work) -> int | None:
    """What work() is in a forked process, as its exit status; None if it hangs."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = int(work())
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def needs_fork(test):
    quiet = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")(quiet(test))


def quick(cases, *chosen):
    """Cases to be parametrised with, of which all but the chosen are slow."""
    return [pytest.param(case, marks=[] if case in chosen else pytest.mark.slow) for case in cases]


def read_csv(path):
    """Its rows, as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
