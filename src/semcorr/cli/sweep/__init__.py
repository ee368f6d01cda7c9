"""Sweeps: which jobs there are, one of them, and the table of all."""
