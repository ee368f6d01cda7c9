"""Evaluation: from predictions to scores."""
