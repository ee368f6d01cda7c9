"""A run's config.yaml: written by the run, and read with care, as anybody may have written it.

People share run directories. Every command reads the configuration of a run by this module, and so does
`Matcher.load`: it can only call what semcorr itself calls. docs/sharing.md says what is refused.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.text_files import JsonObject
from semcorr.engine.config_check import check_saved_config
from semcorr.engine.foreign_files import unmark_finished
from semcorr.engine.known_targets import KnownTargets, config_search_path, read_known_targets
from semcorr.engine.plain_yaml import read_plain_yaml
from semcorr.engine.renamed_targets import update_targets
from semcorr.engine.run_dir import code_versions, remove_results

if TYPE_CHECKING:  # it imports torch, which reading does not need
    from semcorr.core.interfaces import Backbone

CONFIG = "config.yaml"
GENERATED = {"semcorr.data.synthetic.Synthetic": "synthetic.json"}  # generated benchmarks, and the file that marks them


def is_run(folder: Path) -> bool:
    """Tell whether a folder has the configuration of a run, which may still be refused when it is read."""
    try:
        return (folder / CONFIG).is_file()
    except OSError:  # a name that is too long, or below a folder that may not be entered
        return False


def read_run_config(
    run: Path,
    overrides: Sequence[str] = (),
    search: tuple[str, ...] | None = None,
    option: str | None = None,
    resumes: bool = False,
) -> DictConfig:
    """Read the configuration of a run; for an evaluation, check that of the run it scored as well, if it exists.

    Args:
        run: Folder of the run.
        overrides: Overrides of this command line. The values that they replace may be anything.
        search: Trees whose files say what may be called, as returned by `config_search_path`; by default semcorr's own
            and those of installed plug-ins.
        option: Name of the option that the user gave the run by, such as `checkpoint`, for the error.
        resumes: Whether the run is continued, with its callbacks, which are left out otherwise.

    Returns:
        The configuration, without interpolations.

    Raises:
        UserError: The configuration does not exist, is not plain YAML, lacks a section that every run has, or would
            call a target, or pass it an option, that no installed file does.
    """
    from semcorr.engine.known_targets import conf_dir

    if not is_run(run):
        start = f"`{option}`: " if option else ""
        if run.is_file():
            run_dir = run.parent.parent
            remedy = (
                f"Give its run_dir, {run_dir}"
                if is_run(run_dir)
                else "A backbone's weights are given as backbone.weights"
            )
            raise UserError(f"{start}{run} is a file, not the run_dir of a training run. {remedy}.")
        raise UserError(f"{start}{run / CONFIG} does not exist. Give the run_dir of a training run.")
    known = read_known_targets(config_search_path(str(conf_dir())) if search is None else search)
    replaced = overridden_keys(overrides)
    replaced |= set() if resumes else {"callbacks"}
    values = read_checked_config(run / CONFIG, known, replaced, has_line=search is not None)
    if not resumes and "callbacks" in values:
        values["callbacks"] = {}
    scored = None if "loss" in values else values.get("checkpoint")
    if scored and is_run(Path(scored)):
        read_checked_config(Path(scored) / CONFIG, known, replaced, has_line=search is not None)
    return OmegaConf.create(values)


def read_checked_config(
    path: Path, known: KnownTargets, overridden: frozenset[str] = frozenset(), has_line: bool = False
) -> JsonObject:
    """Read a saved configuration as plain values, or refuse it.

    Args:
        path: The file.
        known: Targets that may be called.
        overridden: Dotted keys whose saved values will not be used.
        has_line: Whether any section can be typed on the line of this command, as for train and evaluate.
    """
    plain = read_plain_yaml(path)
    plain = plain._replace(values=update_targets(plain.values))
    check_saved_config(path, plain, known, overridden, has_line)
    assert isinstance(plain.values, dict), "check_saved_config has seen to it"
    return plain.values


def overridden_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Return the dotted keys that overrides give a value.

    >>> sorted(overridden_keys(["head._target_=my.Head", "+backbone={depth: 2, layers: [1, 2]}", "data=spair"]))
    ['backbone.depth', 'backbone.layers', 'head._target_']
    """
    return frozenset(key for override in overrides for key in _parse_keys(override) if "." in key)


def _parse_keys(override: str) -> Iterator[str]:
    """Yield the dotted keys that an override gives a value."""
    key, equals, _ = override.lstrip("+").partition("=")
    try:
        value = OverridesParser.create().parse_override(override).value() if equals else None
    except HydraException:  # not in Hydra's syntax, as options of `audit`: only the key counts
        value = None
    yield from _iterate_keys(key, value)


def _iterate_keys(key: str, value: object) -> Iterator[str]:
    """Yield the dotted keys of the leaves of a value."""
    if not isinstance(value, dict):
        yield key
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _iterate_keys(f"{key}.{name}", item)


def escape_interpolations(value: object) -> object:
    r"""Return values of a configuration in their written form, so that a `${` in a path is read back unchanged.

    >>> print(escape_interpolations({"run_dir": "runs/${x}"})["run_dir"])
    runs/\${x}
    """
    if isinstance(value, dict):
        return {key: escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_interpolations(item) for item in value]
    if isinstance(value, str | Path):
        return re.sub(r"(\\*)\$\{", lambda match: rf"{2 * match[1]}\${{", str(value))
    return value


def drop_store(cfg: DictConfig) -> str | None:
    """Keep features in memory for this run alone, and return the folder that the saved configuration would use.

    Only the command line says where a command writes. The type of cached features, which changes numbers, stays.
    """
    if "store" not in cfg:
        return None
    root: str | None = cfg.store.get("root")
    cfg.store.root = cfg.store.max_gb = None
    return root


def refuse_generating(data: DictConfig) -> None:
    """Refuse a benchmark that would now be generated, in a folder that only a saved configuration names.

    Raises:
        UserError: The benchmark is refused; the message names the folder, and says to type it.
    """
    if data._target_ in GENERATED and not (Path(data.root) / GENERATED[data._target_]).is_file():
        raise UserError(
            f"`data.root`: {data.root} has no drawings, and the run's {CONFIG} would have them drawn there. "
            f"Give data.root=DIR, the same or another folder."
        )


def to_plain_types(cfg: DictConfig) -> JsonObject:
    """Convert a section of a configuration to Python's own types."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def begin_run(cfg: DictConfig, backbone: "Backbone", run_dir: Path, resumes: bool) -> None:
    """Save the configuration of a run that begins or is resumed, and remove results of another configuration.

    Args:
        cfg: Configuration of the run.
        backbone: Backbone of the run, whose name and hash of weights are saved.
        run_dir: Directory of the run; made if it is missing.
        resumes: Whether a run is resumed; its scalars in metrics.csv are then not removed, but continued.

    Raises:
        UserError: The file cannot be written.
    """
    path, text = run_dir / CONFIG, config_text(cfg, backbone)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != text.encode():
        remove_results(run_dir, keep=["metrics.csv"] if resumes else [])
    write_text(path, text, "run_dir")
    unmark_finished(run_dir)


def save_config(cfg: DictConfig, backbone: "Backbone", run_dir: Path) -> None:
    """Write config.yaml into a run's directory."""
    write_text(run_dir / CONFIG, config_text(cfg, backbone), "run_dir")


def config_text(cfg: DictConfig, backbone: "Backbone") -> str:
    """Format the resolved configuration as YAML, with the versions and weights that scores depend on as well."""
    resolved = to_plain_types(cfg)
    resolved["provenance"] = {
        **code_versions(),
        "backbone": backbone.name,
        "weights_sha256": backbone.sha256,
    }
    escaped = escape_interpolations(resolved)
    assert isinstance(escaped, dict)
    return OmegaConf.to_yaml(OmegaConf.create(escaped))
