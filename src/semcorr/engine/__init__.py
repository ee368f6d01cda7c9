"""Lightning: the module, its parts, and what a run directory holds."""
