"""Two feature maps and query points to similarity."""
