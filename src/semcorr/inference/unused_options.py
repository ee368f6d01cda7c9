"""Options of a config line that scoring reads and matching two pictures does not: refused where they were typed."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from semcorr.cli.compose import override_keys
from semcorr.core.errors import UserError
from semcorr.engine.build import build_readouts
from semcorr.matching.readouts import readout_shorthand

log = logging.getLogger(__name__)
# Sections without effect on the points, and what to do instead.
UNUSED = {
    "pose": "the source is matched in its own pose",
    "corrupt": "pictures are matched as they are given",
    "store": "features are kept by encoding a picture once",
    "trainer": "a matcher has `device` and `precision` in its place",
    "compile": "blocks are not compiled",
    "kap": "nothing is scored",
    "objective": "nothing is scored",
    "data": "pictures come from you, and of a benchmark only `data.resize` counts",
    "data_root": "pictures come from you",
    "name": "no run is written",
    "run_dir": "no run is written",
    "logger": "no run is written",
    "callbacks": "no run is written",
}
MATCHED = ("data.resize",)  # keys of these sections that matching does read
OFF = ("none", "null", "false", "memory", "")  # values that say what holds anyway


def refuse_unused_options(cfg: DictConfig, line: Sequence[str]) -> None:
    """Refuse what was typed and changes nothing of the points that are found.

    Args:
        cfg: Composed configuration of an evaluation.
        line: Words of the line.

    Raises:
        UserError: A section that only scoring reads, several readouts or several protocols were typed.
    """
    for word, key in zip(line, override_keys(line), strict=True):
        section, value = key.partition(".")[0], word.partition("=")[2]
        if section in UNUSED and key not in MATCHED and (key != section or value.lower() not in OFF):
            raise UserError(
                f"`{word}` changes what semcorr.evaluate does, and no match: {UNUSED[section]}. Leave it out"
            )
    typed = {key.partition(".")[0] for key in override_keys(line)}
    readouts = build_readouts(cfg)
    if len(readouts) > 1 and "localise" in typed:
        names = ", ".join(map(readout_shorthand, readouts))
        raise UserError(
            f"`localise`: points are found by one readout, and {len(readouts)} were given ({names}). "
            f"Give one, as localise={readout_shorthand(readouts[0]).split()[0]}"
        )
    if "protocol" in typed and "names" in cfg.protocol:
        raise UserError(
            "`protocol`: points are found by the readout of one protocol, and several were given. "
            "Give one, as protocol=semcorr"
        )


def warn_of_duplicates(line: Sequence[str]) -> None:
    """Warn which of two values of a key counts, as a command line does.

    Args:
        line: Words of the line.
    """
    last: dict[str, str] = {}
    for word, key in zip(line, override_keys(line), strict=True):
        if last.get(key, word) != word:
            log.warning("`%s` is given twice: %s counts, not %s", key, word, last[key])
        last[key] = word


def warn_of_unused_sections(cfg: DictConfig, saved: DictConfig | None) -> None:
    """Warn once of what a run was scored with, and its matcher does not do.

    Args:
        cfg: Composed configuration, of which nothing without effect was typed.
        saved: Configuration of the run that the line names; None where it names none.
    """
    unused = []
    readouts = build_readouts(cfg)
    if len(readouts) > 1:
        unused.append(f"of {len(readouts)} readouts all but the first, {readout_shorthand(readouts[0])}")
    for section in (cfg, *([saved] if saved is not None else [])):
        pose, corrupt = section.get("pose"), section.get("corrupt")
        if pose and (pose.get("mirror") or pose.get("rotations")):
            unused.append("pose")
        if corrupt and not str(corrupt.get("_target_")).endswith(".Uncorrupted"):
            unused.append("corrupt")
    if unused:
        log.warning(
            "%s: not used here, where two pictures are matched: %s",
            cfg.checkpoint or "The configuration",
            "; ".join(dict.fromkeys(unused)),
        )


def warn_untrained_tuning(cfg: DictConfig, line: Sequence[str]) -> None:
    """Warn where a way of tuning was typed, and no run gives the weights that it trained."""
    typed = [word for word, key in zip(line, override_keys(line), strict=True) if key.partition(".")[0] == "finetune"]
    if typed and typed[-1] != "finetune=frozen" and not cfg.finetune.get("block_weights"):
        log.warning("%s: its weights are untrained, as no run is given. Give one, as checkpoint=RUN_DIR", typed[-1])
