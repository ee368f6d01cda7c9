"""Dense features on disk, one memory-mapped file per image, shared by any number of processes.

ROOT/<16 hex digits of the key>/key.json              key that all features in the folder share
                                <entry>.safetensors    features of one image, with a checksum
                                claims/<entry>.lock    a process is computing it

`python -m semcorr.store ls|verify|prune` lists, checks and removes them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semcorr.store.feature_store import FeatureStore

__all__ = ["FeatureStore", "default_root"]


def default_root() -> Path:
    """Return the folder of features by default: SEMCORR_STORE, or the user's cache."""
    return Path(os.environ.get("SEMCORR_STORE") or "~/.cache/semcorr/features").expanduser()


def __getattr__(name: str) -> object:
    """Import `FeatureStore` at its first use."""
    if name == "FeatureStore":  # imports torch, which the command does not need
        from semcorr.store.feature_store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
