"""python -m semcorr.report."""

from semcorr.report import main

main()
