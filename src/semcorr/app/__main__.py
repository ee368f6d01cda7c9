"""Entry point of `python -m semcorr.app`."""

import sys

from semcorr.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
