"""A trained run as a folder for others: its configuration, the trained weights as safetensors, and a model card.

It is read as any run directory is, by the same guards. The base weights stay where they are: the folder holds what was
trained, and the hash of the base that it belongs to.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.saved_config import escape_interpolations

if TYPE_CHECKING:  # torch takes seconds, which the commands that only name these files do not need
    from torch import Tensor

CARD = "README.md"
FACTS = ("base", "trained_as")  # what a checkpoint says of its weights, here JSON in the file's metadata
FILES = re.compile(
    r"(backbone|head)\.(.+[._])?weights|finetune\.(.+\.)?(block_)?weights"
)  # options that are files of weights


def shared_config_text(cfg: DictConfig) -> str:
    """Format a run's configuration as YAML, without the places where files lay on this machine.

    Args:
        cfg: The configuration, as its config.yaml holds it.
    """
    content: object = OmegaConf.to_container(cfg)
    escaped = escape_interpolations(remove_places(content))
    assert isinstance(escaped, dict)
    return OmegaConf.to_yaml(OmegaConf.create(escaped))


def remove_places(value: object, key: str = "") -> object:
    """Return values of a configuration without this machine's folders: names stay, and files of weights are left out.

    Args:
        value: A configuration, or its leaves by their dotted keys.
        key: Dotted key of the value.

    >>> remove_places({"data": {"root": "/home/me/spair"}, "backbone": {"weights": "w.pth"}, "name": "a/b"})
    {'data': {'root': 'spair'}, 'backbone': {'weights': None}, 'name': 'a/b'}
    """
    if isinstance(value, Mapping):
        return {name: remove_places(child, f"{key}.{name}".lstrip(".")) for name, child in value.items()}
    if isinstance(value, list):
        return [remove_places(child, key) for child in value]
    if isinstance(value, str) and FILES.fullmatch(key):
        return None
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def shared_facts(content: JsonMapping) -> JsonObject:
    """Return what a checkpoint says of its weights, without this machine's folders, as its configuration is shared."""
    facts = {key: content[key] for key in FACTS if key in content}
    return facts | ({"trained_as": remove_places(facts["trained_as"])} if "trained_as" in facts else {})


def read_shared_weights(path: Path) -> JsonObject:
    """Read a file of trained weights as the content of a checkpoint; no code in it is run.

    Raises:
        SafetensorError: The file is damaged.
        ValueError: Its metadata is not JSON.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {"state_dict": weights} | {key: json.loads(metadata[key]) for key in FACTS if key in metadata}
