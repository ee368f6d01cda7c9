"""Entry point of `python -m semcorr.benchmark`."""

import sys

from semcorr.benchmark import main

if __name__ == "__main__":  # a measurement in a process of its own imports this file
    sys.exit(main(sys.argv[1:]))
