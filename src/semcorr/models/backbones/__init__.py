"""An image to dense features."""
