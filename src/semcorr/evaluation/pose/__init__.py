"""Poses of objects, compared and predicted by the instance matching distance of their features."""
