"""Entry point of `python -m semcorr.app`."""

from semcorr.app import main

if __name__ == "__main__":
    main()
