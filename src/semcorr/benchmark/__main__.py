"""python -m semcorr.benchmark."""

from semcorr.benchmark import main

if __name__ == "__main__":  # what is measured apart starts as a fresh process, which imports this file
    main()
