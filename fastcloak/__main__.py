"""`python -m fastcloak` is the command line."""

import sys

from fastcloak.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
