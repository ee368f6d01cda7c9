"""A run's config.yaml, as anybody may have written it, to a configuration from which nothing but semcorr is called.

People share run directories. Every command that reads a run's configuration reads it here, `Matcher.load` too.
docs/sharing.md says what is refused.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.plain_yaml import read_plain_yaml
from semcorr.core.text_files import JsonObject
from semcorr.engine.config_check import check_config
from semcorr.engine.known_targets import KnownTargets, config_search_path, read_known_targets
from semcorr.engine.renamed_targets import update_targets

CONFIG = "config.yaml"
DRAWN = {"semcorr.data.synthetic.Synthetic": "synthetic.json"}  # and the file that says so


def is_run(folder: Path) -> bool:
    """Tell whether a folder has the configuration of a run; it may still be refused."""
    try:
        return (folder / CONFIG).is_file()
    except OSError:  # a name that is too long, or below a folder that may not be entered
        return False


def read_run_config(
    run: Path,
    typed: Sequence[str] = (),
    search: tuple[str, ...] | None = None,
    option: str | None = None,
    goes_on: bool = False,
) -> DictConfig:
    """Read what a run was; of an evaluation, also make sure of the run whose checkpoint it scored, if that is there.

    Args:
        run: Its folder.
        typed: Overrides of this command line. What they replace may be anything: it is the user's own.
        search: Trees whose files say what may be called, as `search_path` gives them; semcorr's own and those of
            installed plug-ins if left out.
        option: What the user gave the run by, as `checkpoint`; named in the error.
        goes_on: It is trained on, with its callbacks. For all else these are nothing, and left out.

    Returns:
        The configuration, without interpolations.

    Raises:
        UserError: It is not there, is no plain YAML, lacks what every run has, or would call, or give to what it calls,
            something that no installed file does.
    """
    from semcorr.engine.known_targets import conf_dir

    if not is_run(run):
        start = f"`{option}`: " if option else ""
        if run.is_file():
            owner = run.parent.parent
            remedy = (
                f"Give its run_dir, {owner}" if is_run(owner) else "A backbone's weights are given as backbone.weights"
            )
            raise UserError(f"{start}{run} is a file, not the run_dir of a training run. {remedy}.")
        raise UserError(f"{start}{run / CONFIG} does not exist. Give the run_dir of a training run.")
    known, replaced = (
        read_known_targets(config_search_path(str(conf_dir())) if search is None else search),
        replaced_by(typed),
    )
    replaced |= set() if goes_on else {"callbacks"}
    values = read_plain_config(run / CONFIG, known, replaced)
    if not goes_on and "callbacks" in values:
        values["callbacks"] = {}
    scored = None if "loss" in values else values.get("checkpoint")
    if scored and is_run(Path(scored)):
        read_plain_config(Path(scored) / CONFIG, known, replaced)
    return OmegaConf.create(values)


def read_plain_config(path: Path, known: KnownTargets, replaced: frozenset[str] = frozenset()) -> JsonObject:
    """Read a saved configuration as plain values, or refuse it.

    Args:
        path: The file.
        known: What may be called.
        replaced: Dotted keys whose saved values will not be used.
    """
    plain = read_plain_yaml(path)
    plain = plain._replace(values=update_targets(plain.values))
    check_config(path, plain, known, replaced)
    assert isinstance(plain.values, dict), "check_config has seen to it"
    return plain.values


def replaced_by(typed: Sequence[str]) -> frozenset[str]:
    """Return the dotted keys that overrides give a value.

    >>> sorted(replaced_by(["head._target_=my.Head", "+backbone={depth: 2, layers: [1, 2]}", "data=spair"]))
    ['backbone.depth', 'backbone.layers', 'head._target_']
    """
    return frozenset(key for override in typed for key in _leaves(override) if "." in key)


def _leaves(override: str) -> Iterator[str]:
    key, equals, _ = override.lstrip("+").partition("=")
    try:
        value = OverridesParser.create().parse_override(override).value() if equals else None
    except HydraException:  # not Hydra's words: where others are read, as by `audit`, the key is what counts
        value = None
    yield from _keys(key, value)


def _keys(key: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        yield key
    for name, each in value.items() if isinstance(value, dict) else ():
        yield from _keys(f"{key}.{name}", each)


def escape_interpolations(value: object) -> object:
    r"""Return values of a configuration as they are written, so that a `${` in a path is read back as it is.

    >>> print(escape_interpolations({"run_dir": "runs/${x}"})["run_dir"])
    runs/\${x}
    """
    if isinstance(value, dict):
        return {key: escape_interpolations(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escape_interpolations(each) for each in value]
    if isinstance(value, str | Path):
        return re.sub(r"(\\*)\$\{", lambda at: rf"{2 * at[1]}\${{", str(value))
    return value


def drop_store(cfg: DictConfig) -> str | None:
    """Let features be kept for this run alone, and return the folder that the saved configuration would have them in.

    Where a command writes is said by its own line. The type that features are kept in, which moves numbers, stays.
    """
    if "store" not in cfg:
        return None
    root: str | None = cfg.store.get("root")
    cfg.store.root = cfg.store.max_gb = None
    return root


def refuse_drawing(data: DictConfig) -> None:
    """Refuse a benchmark that would now be drawn, at a place that only a saved configuration names.

    Raises:
        UserError: It names the place, and asks for it to be typed.
    """
    if data._target_ in DRAWN and not (Path(data.root) / DRAWN[data._target_]).is_file():
        raise UserError(
            f"`data.root`: {data.root} has no drawings, and the run's {CONFIG} would have them drawn there. "
            f"Give data.root=DIR, the same or another folder."
        )
