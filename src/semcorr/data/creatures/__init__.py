"""Rendering of articulated animals: anatomy and pose, rasteriser, scenery, and photograph."""
