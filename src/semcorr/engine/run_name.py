"""Names of runs in dashboards: which backbone, how it is tuned, on which benchmark, as dinov2-blocks_2-spair."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import DictConfig

from semcorr.core.text_files import JsonObject
from semcorr.engine.known_targets import conf_dir

NAMED = ("backbone", "finetune", "data")  # groups that a name is made of
DEFAULT_NAMES = ("train", "evaluate")  # of `name`, which says nothing then


def name_run(cfg: DictConfig) -> str:
    """Name a run by the choices of its groups, as they would be typed.

    Args:
        cfg: Configuration of a run; one that is inherited by `checkpoint` knows its choices by their content alone.
    """
    return "-".join(name_choice(group, cfg[group]) for group in NAMED)


def tag_run(cfg: DictConfig) -> list[str]:
    """List the tags of a run: the parts of its name, its head, its protocol, and its own `name` where it has one."""
    protocol = cfg.get("protocol") or {}
    protocols = protocol.get("names") or [protocol.get("name")]  # the first is that of metrics.json
    tags = [*(name_choice(group, cfg[group]) for group in (*NAMED, "head")), str(protocols[0] or "")]
    return [*dict.fromkeys(tag for tag in (*tags, *({cfg.name} - {*DEFAULT_NAMES})) if tag)]


def label_run(cfg: DictConfig, node: Mapping[str, object]) -> JsonObject:
    """Return the labels of a run that its logger shows: what is null in the logger's section, and more tags.

    Args:
        cfg: Configuration of the run.
        node: Section of the logger.
    """
    labels: JsonObject = {"name": name_run, "job_type": lambda cfg: "train" if "loss" in cfg else "evaluate"}
    found = {key: label(cfg) for key, label in labels.items() if key in node and node[key] is None}
    tags = node.get("tags")
    return found | ({"tags": [*dict.fromkeys((*tag_run(cfg), *tags))]} if isinstance(tags, list) else {})


def name_choice(group: str, section: Mapping[str, object]) -> str:
    """Return the name of the file that a section was chosen by: of those with its target, the one most like it.

    A section of no file is named by its `name`, or by its target.
    """
    target = str(section["_target_"])
    if target.endswith(".last_blocks"):
        return f"blocks_{section['blocks']}" if section["blocks"] else "frozen"
    likeness = {
        path.stem: sum(section.get(key) == value for key, value in choice.items())
        for path in sorted((conf_dir() / group).glob("*.yaml"))
        if (choice := read_choice(path)).get("_target_") == target
        and choice.get("name", "???") in ("???", section.get("name", "???"))
    }
    if likeness:
        stem = max(likeness, key=lambda name: likeness[name])
        choice = read_choice(conf_dir() / group / f"{stem}.yaml")
        return str(section["name"]).rpartition("/")[2] if choice.get("name") == "???" else stem
    return str(section.get("name") or target.rpartition(".")[2]).rpartition("/")[2]


def read_choice(path: Path) -> JsonObject:
    """Read a file of a group with those of the same folder that it extends; interpolations stay as they are."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    options: JsonObject = {}
    for default in content.pop("defaults", []):
        if isinstance(default, str) and default != "_self_":
            options |= read_choice(path.with_name(f"{default}.yaml"))
    return options | content
