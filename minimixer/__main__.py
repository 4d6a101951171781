"""python -m minimixer COMMAND: app/ has the commands."""

import sys

from .app import main

if __name__ == "__main__":
    sys.exit(main())
