"""python -m semcorr.audit RUN_DIR: how far the same features move from one convention to the next, and what moves them.

A finished run is built again, its images are encoded once, and each published protocol is reached from ours by
changing one axis at a time. Axes interact: what one of them moves is said at its place in the walk.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich import box
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import OneOf, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable_file, temporary_folder, write_json
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import REPORTS, read_json
from semcorr.engine.rebuild import read_scored_config, rebuild_scored_module

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from semcorr.evaluation.protocols import Protocol
    from semcorr.evaluation.scoring_specs import ScoringSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
WALK = (("scaling", "clamp"), ("lookup",), ("read_out",), ("decode",), ("frame",), ("strict",), ("pooling",))


class AuditStep(NamedTuple):
    """A change of one axis."""

    axis: str
    value: str
    reading: "ScoringSpec"


def walk_axes(start: "ScoringSpec", end: "Protocol") -> "list[AuditStep]":
    """From a reading to a protocol with its own read-out, one axis after the other; none that agree already."""
    from dataclasses import replace

    from semcorr.evaluation.scoring_specs import ScoringSpec
    from semcorr.matching.readout_names import readout_shorthand

    steps, at = [], start
    for axes in WALK:
        if axes == ("read_out",):
            moved = ScoringSpec(at.protocol, end.read_out)
            value = readout_shorthand(end.read_out)
        else:
            changed = {axis: getattr(end, axis) for axis in axes}
            moved = ScoringSpec(replace(at.protocol, **changed), at.rule)
            value = ", ".join(str(v) if axis != "clamp" else "clamped" for axis, v in changed.items() if v is not False)
        if moved.protocol != at.protocol or moved.localise != at.localise:
            steps.append(AuditStep(axes[0], value or "not strict", moved))
            at = moved
    return steps


def audit_run(run: Path, resize: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Walk to every protocol that is defined on these pixels; leave audit.json in the run.

    Returns:
        What audit.json holds of this image geometry.
    """
    from semcorr.engine.run_lock import lock_folder
    from semcorr.engine.saved_config import drop_store, refuse_drawing, replaced_by

    cfg, replaced = read_scored_config(run, resize, overrides), replaced_by(overrides)
    if "data.root" not in replaced:
        refuse_drawing(cfg.data)
    if "store.root" not in replaced and (root := drop_store(cfg)):
        print(f"No features are kept in {root}, which the run names. Give store.root={root} for that.", file=sys.stderr)
    with lock_folder(run, "audit"):
        return _audited(run, cfg)


def _audited(run: Path, cfg: "DictConfig") -> dict[str, Any]:
    from semcorr.engine.build import build_trainer
    from semcorr.evaluation.protocols import PRESETS, SEMCORR
    from semcorr.evaluation.scoring_specs import ScoringSpec
    from semcorr.matching.readout_names import list_readouts, readout_shorthand
    from semcorr.models.heads.cosine import Cosine

    known = _before(run / "audit.json")
    require_writable_file(run / "audit.json", "RUN_DIR")
    module, data = rebuild_scored_module(run, cfg)
    start = ScoringSpec(SEMCORR.shown(data.resize), list_readouts(module.localise)[0])
    near = [one for one in PRESETS if not one.exact and one.resize == data.resize]
    near = [one for one in near if one.decode != "native" or isinstance(module.head, Cosine)]
    walks = {one.name: walk_axes(start, one) for one in near}
    module.specs = [start, *(step.reading for steps in walks.values() for step in steps)]
    module.keeps_rows = False
    with temporary_folder(run, "audit") as folder:
        build_trainer(cfg, folder).test(module, datamodule=data, verbose=False)
    headlines = iter([found["headline"] for found in module.result.each])
    content: dict[str, Any] = {
        "split": f"{data.name} {data.split}",
        "backbone": module.backbone.name,
        "start": {
            "protocol": "semcorr",
            "localise": readout_shorthand(start.rule),
            "headline": (ours := next(headlines)),
        },
        "protocols": {name: _told(steps, ours, headlines) for name, steps in walks.items()},
        "elsewhere": {
            one.name: f"python -m semcorr.audit {run} --resize {one.resize}"
            for one in PRESETS
            if one.resize != data.resize
        },
    }
    write_json(run / "audit.json", {**known, data.resize: content}, "RUN_DIR")
    return {**content, "resize": data.resize}


def _before(path: Path) -> dict[str, Any]:
    """What an audit of other pixels has found."""
    found = read_json(path, "Move it away.", REPORTS) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} is not an audit.json. Move it away.")
    return found


def _told(steps: Sequence[AuditStep], ours: dict[str, float], headlines: Any) -> dict[str, Any]:
    """Every step's numbers, by how much it moved them, and the axis that moved any of them most."""
    told, before = [], ours
    for step in steps:
        after = next(headlines)
        moved = {alpha: None if after[alpha] is None else after[alpha] - before[alpha] for alpha in after}
        told.append({"axis": step.axis, "to": step.value, "headline": after, "moved": moved})
        before = after
    most = max(told, key=lambda one: max(abs(value or 0) for value in one["moved"].values()))
    total = {alpha: None if before[alpha] is None else before[alpha] - ours[alpha] for alpha in before}
    return {"steps": told, "most": most["axis"], "moved": total}


def print_steps(found: dict[str, Any]) -> None:
    """A table per protocol."""
    alphas = list(found["start"]["headline"])
    console = Terminal()
    for name, told in found["protocols"].items():
        table = Table(
            title=f"semcorr -> {name}: {found['split']}, {found['backbone']}",
            caption=f"PCK in percent, and what each change moved it by. `{told['most']}` moved it most.",
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        )  # fmt: skip
        for header in ("", *alphas):
            table.add_column(header, justify="right" if header in alphas else "left", overflow="fold")
        start = found["start"]["headline"]
        table.add_row(f"semcorr, {found['start']['localise']}", *(f"{_percent(start[a])}     " for a in alphas))
        for step in told["steps"]:
            cells = (f"{_percent(step['headline'][a])} {_signed(step['moved'][a])}" for a in alphas)
            table.add_row(f"{step['axis']}: {step['to']}", *cells)
        table.add_section()
        table.add_row("all together", *(_signed(told["moved"][alpha]) for alpha in alphas))
        console.print(table)
    for name, command in found["elsewhere"].items():
        console.print(f"{name} needs other pixels: {command}", soft_wrap=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


@app.command()
def run_command(
    run: Annotated[Path, typer.Argument(help="run_dir of a finished evaluate or train run.", metavar="RUN_DIR")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Keys of its config.yaml that are to be otherwise, as data.root=DIR."
        ),
    ] = None,
    resize: Annotated[
        str | None,
        OneOf(("squash", "letterbox", "corner")),
        typer.Option(help="Other pixels than the run's: squash, letterbox or corner. Encodes anew."),
    ] = None,
) -> None:
    """How far the same features move from one published convention to the next, and which axis moves them."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with report_user_errors("evaluate"):
        print_steps(audit_run(run, resize, overrides or []))


def main() -> None:
    """The command."""
    run_app(app, prog_name="semcorr audit")


if __name__ == "__main__":
    main()
