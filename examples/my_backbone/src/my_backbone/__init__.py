"""Parts for semcorr that live in a package of their own."""
