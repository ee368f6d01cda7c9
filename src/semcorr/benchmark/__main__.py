"""The entry point of python -m semcorr.benchmark."""

from semcorr.benchmark import main

if __name__ == "__main__":  # a measurement in a process of its own imports this file
    main()
