"""Shapes of the sections of a composed configuration: a file of another package may lack what every run reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from semcorr.core.errors import UserError
from semcorr.engine.known_targets import LATER_CALLS, MULTIPLE_CALLS, conf_dir
from semcorr.engine.packages import find_tree

GROUPS = {"test": "data"}  # groups of sections that have another name than their group
UNBUILT = ("experiment", "upsample", "hydra")  # groups that have no section of their own
# Keys that a run reads beside those that it hands on, each with what may stand in its place.
READ_KEYS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "backbone": [("size",)],
    "data": [("root",), ("resize",)],
    "protocol": [("name", "names"), ("resize",)],
    "store": [("root",), ("max_gb",)],
    "trainer": [("precision",)],
}


def check_sections(cfg: DictConfig, line: Sequence[str], search: Sequence[str]) -> None:
    """Refuse a section that is not a mapping with a `_target_` and the keys that every run reads.

    Args:
        cfg: Composed configuration.
        line: Words of the line, whose choices say which files the sections are of.
        search: Addresses of the trees of configuration files, in Hydra's form.

    Raises:
        UserError: A section is refused; the message names its group, its choice and its file.
    """
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()} - {*UNBUILT}
    choices = {}
    for word in line:
        place, _, choice = word.lstrip("+").partition("=")
        group, _, package = place.partition("@")
        if group in groups and choice not in ("", "null"):
            choices[package or group] = choice
    for section in dict.fromkeys((*choices, *map(str, cfg))):
        group = GROUPS.get(section, section)
        if group not in groups or (section not in choices and cfg.get(section) is None):
            continue
        reason = _describe_shape(group, cfg.get(section))
        if reason:
            file = find_choice(group, choices[section], search) if section in choices else None
            where = f"{group}={choices[section]}" if section in choices else section
            raise UserError(f"`{where}`: {file or 'its file'} {reason}")


def find_choice(group: str, choice: str, search: Sequence[str], ending: str = "yaml") -> Path | None:
    """Return the file of a choice; None if no tree has it.

    Args:
        group: Name of the group, such as `backbone`.
        choice: Name of a file of it.
        search: Addresses of the trees, in Hydra's form.
        ending: Ending of the file's name.
    """
    folders = (find_tree(address) for address in search)
    files = (folder / group / f"{choice}.{ending}" for folder in folders if folder is not None)
    return next((file for file in files if file.is_file()), None)


def _describe_shape(group: str, section: object) -> str | None:
    """Say what is wrong with the shape of a section, and what to do; None if nothing is."""
    if section is None:
        return f"puts nothing at `{group}`. Give it keys, and no `# @package` of another place."
    if not isinstance(section, DictConfig):
        return f"holds a {'list' if isinstance(section, ListConfig) else 'value'}. Give it keys, as `_target_: PATH`."
    if group in MULTIPLE_CALLS:
        return None
    keys = {*map(str, section.keys())}
    if "_target_" not in keys:
        return "has no `_target_`. Give it the path of a class or function, as `_target_: my_package.part.MyPart`."
    if group not in LATER_CALLS and section.get("_partial_"):
        return f"has `_partial_: true`, and a {group} is built at once. Take it out."
    missing = next((names[0] for names in READ_KEYS.get(group, []) if not keys & {*names}), None)
    return f"has no `{missing}`, which a run reads. Add it." if missing else None
