"""The command line: Hydra, its overrides and sweeps."""
