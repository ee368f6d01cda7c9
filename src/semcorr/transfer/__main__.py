"""python -m semcorr.transfer."""

from semcorr.transfer import main

main()
