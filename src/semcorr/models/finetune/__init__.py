"""Which weights of a backbone move."""
