"""From benchmark files to batches of pairs."""
