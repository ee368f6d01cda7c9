"""Names of runs in dashboards: which backbone, how it is tuned, on which benchmark, as dinov2-blocks_2-spair."""

from collections.abc import Mapping

from omegaconf import DictConfig

from semcorr.core.text_files import JsonObject
from semcorr.engine.known_targets import conf_dir, config_search_path, read_known_targets

NAME_GROUPS = ("backbone", "finetune", "data")  # that a name is made of
DEFAULT_NAMES = ("train", "evaluate")  # of `name`, which says nothing then
LONGEST_TAG = 64  # of W&B, in characters
WANDB = "semcorr.engine.loggers.build_wandb_logger"


def name_run(cfg: DictConfig) -> str:
    """Name a run by the choices of its groups, as they would be typed.

    Args:
        cfg: Configuration of a run; one that is inherited by `checkpoint` knows its choices by their content alone.
    """
    return "-".join(name_choice(group, cfg[group]) for group in NAME_GROUPS)


def tag_run(cfg: DictConfig) -> list[str]:
    """List the tags of a run: the parts of its name, its head, its protocol, and its own `name` where it has one.

    A tag that is longer than W&B takes is cut; the configuration beside it has the whole.
    """
    protocol = cfg.get("protocol") or {}
    protocols = protocol.get("names") or [protocol.get("name")]  # the first is that of metrics.json
    tags = [*(name_choice(group, cfg[group]) for group in (*NAME_GROUPS, "head")), str(protocols[0] or "")]
    return [*dict.fromkeys(tag[:LONGEST_TAG] for tag in (*tags, *({cfg.name} - {*DEFAULT_NAMES})) if tag)]


def label_run(cfg: DictConfig, node: Mapping[str, object]) -> JsonObject:
    """Return the labels of a run that W&B shows: what is null in the logger's section, and more tags.

    Args:
        cfg: Configuration of the run.
        node: Section of a logger; one of another package is left as it is.
    """
    if node["_target_"] != WANDB:
        return {}
    labels: JsonObject = {"name": name_run, "job_type": lambda cfg: "train" if "loss" in cfg else "evaluate"}
    missing = {key: label(cfg) for key, label in labels.items() if key in node and node[key] is None}
    tags = node.get("tags")
    return missing | ({"tags": [*dict.fromkeys((*tag_run(cfg), *tags))]} if isinstance(tags, list) else {})


def name_choice(group: str, section: Mapping[str, object]) -> str:
    """Return the name of the file that a section was chosen by: of those with its target, the one most like it.

    A section of no file is named by its `name`, or by its target.
    """
    target = str(section["_target_"])
    if target.endswith(".last_blocks"):
        norm = "_norm" if section["blocks"] and section.get("norm") else ""
        return f"blocks_{section['blocks']}{norm}" if section["blocks"] else "frozen"
    choices = {
        name: choice
        for name, choice in read_known_targets(config_search_path(str(conf_dir()))).choices(group).items()
        if choice.get("_target_") == target and choice.get("name", "???") in ("???", section.get("name", "???"))
    }
    if not choices:
        return str(section.get("name") or target.rpartition(".")[2]).rpartition("/")[2]
    likeness = {
        name: sum(1 if _is_as_in(value, section.get(key)) else -1 for key, value in choice.items())
        for name, choice in choices.items()
    }
    name = max(likeness, key=lambda name: likeness[name])
    return str(section["name"]).rpartition("/")[2] if choices[name].get("name") == "???" else name


def _is_as_in(written: object, value: object) -> bool:
    """Tell whether a value is as a file has it; of `${data_root}/spair` the end counts, as it may be resolved."""
    if isinstance(written, str) and "}" in written:
        return str(value).endswith(written.rpartition("}")[2])
    return value == written
