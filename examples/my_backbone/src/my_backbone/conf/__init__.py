"""Configuration files of this package."""
