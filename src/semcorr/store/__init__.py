"""Dense features on disk, one memory-mapped file per image, shared by any number of processes.

ROOT/<16 hex digits of the key>/key.json              what all features in the folder have in common
                                <entry>.safetensors    one image's, with a checksum over all that it says
                                claims/<entry>.lock    a process is computing it

`python -m semcorr.store ls|verify|prune` looks after them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semcorr.store.feature_store import FeatureStore

__all__ = ["FeatureStore", "default_root"]


def default_root() -> Path:
    """Where features lie unless told otherwise: SEMCORR_STORE, or the user's cache."""
    return Path(os.environ.get("SEMCORR_STORE") or "~/.cache/semcorr/features").expanduser()


def __getattr__(name: str) -> Any:
    if name == "FeatureStore":  # brings torch, which the command can do without
        from semcorr.store.feature_store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
