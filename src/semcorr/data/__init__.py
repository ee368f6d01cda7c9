"""Benchmark files to batches of pairs."""
