"""Which forms run, or their digests renewed.

python -m minimixer.kernels                     which fast forms run, and why not
python -m minimixer.kernels --renew             after the tests that compare them have passed
python -m minimixer.kernels --renew --untested  without, to plant a mistake in both
"""

import argparse
import subprocess
import sys

from . import _find, _table, status, unchanged

TESTS = ["tests/test_kernels.py", "tests/test_cpu_kernels.py", "tests/test_operations.py"]


def main() -> int:
    """0, or 1 if the tests failed."""
    parser = argparse.ArgumentParser(prog="python -m minimixer.kernels", allow_abbrev=False)
    parser.add_argument("--renew", action="store_true", help="write digests.json anew")
    parser.add_argument("--untested", action="store_true", help="without running the tests before")
    options = parser.parse_args()
    if options.renew:
        _find()
        before = unchanged.FILE.read_bytes() if unchanged.FILE.is_file() else b"{}"
        # first, or the fast forms of what was edited would not run in the tests
        unchanged.renew({module for _, _, modules in _table for module in modules})
        if not options.untested and subprocess.call([sys.executable, "-m", "pytest", "-q", *TESTS]):
            unchanged.FILE.write_bytes(before)
            print("the tests failed: digests.json stays as it is", file=sys.stderr)
            return 1
        print(f"wrote {unchanged.FILE}")
    else:
        print(status())
    return 0


if __name__ == "__main__":
    sys.exit(main())
