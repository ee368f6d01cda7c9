"""Articulated animals, drawn: anatomy and pose, rasteriser, scenery, and the photograph of it all."""
