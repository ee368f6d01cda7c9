"""Backbones, which turn an image into dense features."""
