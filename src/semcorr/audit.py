"""The command python -m semcorr.audit RUN_DIR: how far the scores of the same features move between conventions.

A finished run is built again, its images are encoded once, and each published protocol is reached from ours by
changing one axis at a time. Axes interact, so the effect of an axis holds for its position in this order.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich import box
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import OneOf, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable_file, temporary_folder, write_json
from semcorr.core.terminal import Terminal, format_score, print_line
from semcorr.core.text_files import REPORTS, JsonObject, read_json
from semcorr.engine.rebuild import read_scored_config, rebuild_scored_module

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from semcorr.evaluation.protocols import Protocol, ScoringSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
WALK = (
    ("points",),
    ("scaling", "clamp"),
    ("lookup",),
    ("normalise",),
    ("comparison",),
    ("read_out",),
    ("decode",),
    ("frame",),
    ("strict", "alphas"),
    ("pooling",),
)


class AuditStep(NamedTuple):
    """The change of one axis, and the scoring that results."""

    axis: str  # of `Protocol`; audit.json has its `readout` as `read_out`
    value: str  # the axis after the change, as it is printed
    spec: "ScoringSpec"


def walk_axes(start: "ScoringSpec", end: "Protocol") -> "list[AuditStep]":
    """Return the steps from a scoring to a protocol with its own readout, axis by axis, where they differ."""
    from dataclasses import replace

    from semcorr.evaluation.protocols import ScoringSpec
    from semcorr.matching.readouts import readout_shorthand

    steps, current = [], start
    for axes in WALK:
        if axes == ("read_out",):
            changed_spec = ScoringSpec(current.protocol, end.readout)
            value = readout_shorthand(end.readout)
        else:
            changed = {axis: getattr(end, axis) for axis in axes}
            changed_spec = ScoringSpec(replace(current.protocol, **changed), current.readout)
            value = ", ".join(
                "clamped" if axis == "clamp" else str(choice)
                for axis, choice in changed.items()
                if choice not in (False, "double")
            )
        if changed_spec.protocol != current.protocol or changed_spec.localise != current.localise:
            steps.append(AuditStep(axes[0], value or "not strict", changed_spec))
            current = changed_spec
    return steps


def audit_run(run: Path, resize: str | None = None, overrides: Sequence[str] = ()) -> JsonObject:
    """Walk to every protocol that is defined on the run's pixels, and write audit.json into the run.

    Args:
        run: Directory of a finished run.
        resize: How images become squares: squash, letterbox or corner; None: as in the run.
        overrides: Values of its config.yaml to replace, as `data.root=DIR`.

    Returns:
        The part of audit.json on this image geometry, and the geometry as `resize`.

    Raises:
        UserError: The run is not finished or cannot be read, an override cannot be used, or nothing can be written.
    """
    from semcorr.engine.run_lock import lock_folder
    from semcorr.engine.saved_config import drop_store, overridden_keys, refuse_generating

    cfg, replaced = read_scored_config(run, resize, overrides), overridden_keys(overrides)
    if "data.root" not in replaced:
        refuse_generating(cfg.data)
    if "store.root" not in replaced and (root := drop_store(cfg)):
        print(f"No features are kept in {root}, which the run names. Give store.root={root} for that.", file=sys.stderr)
    print_line(f"Scoring {run} by one protocol after another")
    with lock_folder(run, "audit"):
        return _audit_locked(run, cfg)


def _audit_locked(run: Path, cfg: "DictConfig") -> JsonObject:
    from semcorr.data.views import split_resize
    from semcorr.engine.trainer import build_trainer
    from semcorr.evaluation.protocols import PRESETS, SEMCORR, ScoringSpec
    from semcorr.matching.readouts import list_readouts, readout_shorthand
    from semcorr.models.heads.cosine import Cosine

    previous = _read_audit(run / "audit.json")
    require_writable_file(run / "audit.json", "RUN_DIR")
    module, data = rebuild_scored_module(run, cfg)
    start = ScoringSpec(SEMCORR.with_resize(data.resize), list_readouts(module.localise)[0])
    run_resize, benchmark = split_resize(data.resize)[0], data.name
    reachable = [
        protocol for protocol in PRESETS if not protocol.exact and protocol.resize_for(benchmark) == run_resize
    ]
    reachable = [protocol for protocol in reachable if protocol.decode != "native" or isinstance(module.head, Cosine)]
    walks = {protocol.name: walk_axes(start, protocol) for protocol in reachable}
    module.set_specs([start, *(step.spec for steps in walks.values() for step in steps)], keeps_rows=False)
    with temporary_folder(run, "audit") as folder:
        build_trainer(cfg, folder).test(module, datamodule=data, verbose=False)
    headlines = iter([result["headline"] for result in module.result.spec_scores])
    content: JsonObject = {
        "split": f"{data.name} {data.split}",
        "backbone": module.backbone.name,
        "start": {
            "protocol": "semcorr",
            "localise": readout_shorthand(start.readout),
            "headline": (start_headline := next(headlines)),
        },
        "protocols": {name: _format_steps(steps, start_headline, headlines) for name, steps in walks.items()},
        "elsewhere": {
            protocol.name: f"python -m semcorr.audit {run} --resize {protocol.resize_for(benchmark)}"
            for protocol in PRESETS
            if protocol.resize_for(benchmark) != run_resize
        },
    }
    write_json(run / "audit.json", {**previous, data.resize: content}, "RUN_DIR")
    return {**content, "resize": data.resize}


def _read_audit(path: Path) -> JsonObject:
    """Read audit.json, which may hold audits of other image geometries; empty if there is none."""
    content = read_json(path, "Move it away.", REPORTS) if path.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an audit.json. Move it away.")
    return content


def _format_steps(steps: Sequence[AuditStep], start: JsonObject, headlines: Iterator[JsonObject]) -> JsonObject:
    """Format the steps as dictionaries: scores, what each step moved them by, and the axis of the largest move."""
    formatted: list[JsonObject] = []
    previous = start
    for step in steps:
        current = next(headlines)
        change = {alpha: None if current[alpha] is None else current[alpha] - previous[alpha] for alpha in current}
        formatted.append({"axis": step.axis, "to": step.value, "headline": current, "moved": change})
        previous = current
    largest = max(formatted, key=lambda step_dict: max(abs(value or 0) for value in step_dict["moved"].values()))
    total = {alpha: None if previous[alpha] is None else previous[alpha] - start[alpha] for alpha in previous}
    return {"steps": formatted, "most": largest["axis"], "moved": total}


def print_steps(content: JsonObject) -> None:
    """Print a table per protocol, and the commands for the protocols that need other pixels.

    Args:
        content: What `audit_run` returns.
    """
    alphas = list(content["start"]["headline"])
    console = Terminal()
    for name, walk in content["protocols"].items():
        table = Table(
            title=f"semcorr -> {name}: {content['split']}, {content['backbone']}",
            caption=f"PCK in percent, and what each change moved it by. `{walk['most']}` moved it most.",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title_justify="left",
            caption_justify="left",
        )
        for header in ("", *alphas):
            table.add_column(header, justify="right" if header in alphas else "left", overflow="fold")
        start = content["start"]["headline"]
        table.add_row(f"semcorr, {content['start']['localise']}", *(f"{format_score(start[a])}     " for a in alphas))
        for step in walk["steps"]:
            cells = (f"{format_score(step['headline'][a])} {_format_change(step['moved'][a])}" for a in alphas)
            table.add_row(f"{step['axis']}: {step['to']}", *cells)
        table.add_section()
        table.add_row("all together", *(_format_change(walk["moved"][alpha]) for alpha in alphas))
        console.print_table(table)
    for name, command in content["elsewhere"].items():
        console.print(f"{name} needs other pixels: {command}", soft_wrap=True)


def _format_change(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


@app.command()
def print_audit(
    run: Annotated[Path, typer.Argument(help="run_dir of a finished evaluate or train run.", metavar="RUN_DIR")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values of its config.yaml to override, such as data.root=DIR."),
    ] = None,
    resize: Annotated[
        str | None,
        OneOf(("squash", "letterbox", "corner")),
        typer.Option(
            help="Resize images otherwise than the run did, and encode them again: squash, letterbox or corner."
        ),
    ] = None,
) -> None:
    """Measure how far the scores move from one published convention to the next, and which axis moves them."""
    with report_user_errors("evaluate"):
        print_steps(audit_run(run, resize, overrides or []))


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr audit`, and return its exit code."""
    return run_app(app, words, "semcorr audit")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
