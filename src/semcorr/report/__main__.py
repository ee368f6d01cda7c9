"""The entry point of python -m semcorr.report."""

from semcorr.report import main

main()
