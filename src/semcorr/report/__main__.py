"""Entry point of `python -m semcorr.report`."""

import sys

from semcorr.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
