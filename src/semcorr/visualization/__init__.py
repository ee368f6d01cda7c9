"""Pictures of predictions, similarity maps and tracks."""
