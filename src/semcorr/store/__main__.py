"""python -m semcorr.store."""

from semcorr.store import main

main()
