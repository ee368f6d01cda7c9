"""The command python -m semcorr.search layers: the layers of a frozen backbone that match best, by beam search."""

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import run_app
from semcorr.core.errors import UserError
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.ranges import Range
from semcorr.core.terminal import Terminal, print_line

if TYPE_CHECKING:  # they import torch, which --help does not need
    import torch
    from omegaconf import DictConfig

    from semcorr.core.interfaces import Backbone
    from semcorr.evaluation.layer_search import Layers, LayerSet

SHOWN = 5  # sets of a round in the table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()  # makes `layers` a subcommand, though it is the only one
def search() -> None:
    """Search what no training decides, by the scores of validation pairs: the layers of a backbone."""


@app.command("layers")
def search_layers(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of evaluate, such as backbone=dinov2 data=spair. Layers are chosen "
            "from backbone.layers=[...]; default: all. Pairs are those of data.split; default: val.",
        ),
    ] = None,
    beam: Annotated[
        int,
        Range(least=1, most=100),
        typer.Option("--beam", help="Number of best sets of each size that are enlarged by one layer."),
    ] = 4,
    most: Annotated[
        int, Range(least=1, most=100), typer.Option("--most", help="Number of layers of the largest sets.")
    ] = 8,
    pairs: Annotated[
        int | None,
        Range(least=1),
        typer.Option("--pairs", help="Number of pairs to score, evenly taken from the split; default: all."),
    ] = None,
) -> None:
    """Choose the layers that a frozen backbone is read at: the hyperpixels of Min et al. (2019).

    Sets of one layer are scored, the best are enlarged by every other layer, and so on. Features are computed once for
    each layer. Sets are ordered by the metric that `objective` names; default: PCK@0.1.
    """
    with report_user_errors("evaluate"):
        rounds: list[list[LayerSet]] = []
        cfg = _compose([*(overrides or [])])
        with advise_on_interrupt(lambda: _describe_rounds(rounds)):
            for scored in run_search(cfg, beam, most, pairs, _names_layers(overrides or [])):
                rounds.append(scored)
        print_sets(rounds, cfg.objective)


def _names_layers(overrides: Sequence[str]) -> bool:
    """Tell whether the choice of layers is limited on the command line."""
    from semcorr.cli.compose import override_keys

    return "backbone.layers" in override_keys(overrides)


def _compose(overrides: list[str]) -> "DictConfig":
    """Compose and check the configuration of an evaluation of the validation pairs.

    Raises:
        UserError: A setting has no effect on a search.
    """
    from semcorr.cli.compose import compose_config, override_keys
    from semcorr.cli.hydra_app import check_run
    from semcorr.cli.typed_line import check_line
    from semcorr.engine.known_targets import conf_dir

    keys = override_keys(overrides)
    line = check_line(overrides if "data.split" in keys else [*overrides, "data.split=val"], "evaluate", conf_dir())
    cfg = compose_config("evaluate", line)
    if cfg.checkpoint is not None:
        raise UserError("`checkpoint` has trained weights, and layers are searched of frozen backbones. Leave it out.")
    if cfg.kap:
        raise UserError("`kap` has no effect on a search of layers. Leave it out.")
    if "layers" not in cfg.backbone and "backbone.layers" not in keys:
        cfg.backbone = {**cfg.backbone, "layers": [-1]} if _takes_layers(cfg) else cfg.backbone
    check_run(cfg)
    return cfg


def _takes_layers(cfg: "DictConfig") -> bool:
    """Tell whether the backbone has an option `layers`, though its file does not list it."""
    from semcorr.engine.options import accepted_options

    options = accepted_options(cfg.backbone._target_, cfg.backbone)
    return options is not None and "layers" in options.annotations


def run_search(cfg: "DictConfig", beam: int, most: int, pairs: int | None, limited: bool) -> "Iterator[list[LayerSet]]":
    """Yield the scored sets of one layer, of two, and so on, each time with the best first.

    Args:
        cfg: Configuration of an evaluation; `backbone.layers` is filled in.
        beam: Number of sets of each size that are enlarged.
        most: Number of layers of the largest sets.
        pairs: Number of pairs that are scored, evenly taken from the split; None: all of them.
        limited: Whether `backbone.layers` has the layers to choose from, and not all are.

    Raises:
        UserError: The backbone, the head or the benchmark is none that layers can be searched with.
    """
    from semcorr.cli.sweep.objective import require_objective, select_number
    from semcorr.data.datamodule import PairDataModule
    from semcorr.engine.build import build_backbone, build_datamodule_and_module
    from semcorr.engine.trainer import build_trainer
    from semcorr.engine.trainer_options import run_products
    from semcorr.evaluation.image_features import EvaluationSetup
    from semcorr.evaluation.layer_search import LayerScorer, has_weights, keep_pairs, search_beam
    from semcorr.store.encode import ProcessGroup

    require_objective(cfg)
    has_grid = cfg.backbone.get("grid") is not None  # it is replaced by the size that it makes
    if not limited:
        last = {"layers": [-1]} if "layers" in cfg.backbone else {}
        cfg.backbone.layers = _list_layers(build_backbone(cfg, **last))
    module, data = build_datamodule_and_module(cfg)
    if not isinstance(data, PairDataModule):
        raise UserError(f"`data`: {data.name} has no pairs to search layers by. Choose another benchmark.")
    choices = _list_choices(module.backbone)
    if has_weights(module.head):
        raise UserError("`head` has weights, made for one set of layers. Leave it out: head=cosine has none.")
    if module.pose:
        raise UserError("`pose` has no effect on a search of layers. Leave it out.")
    keep_pairs(data, data.split, pairs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(cfg, Path(folder))
    if trainer.world_size > 1:
        raise UserError("layers are searched by one process. Give trainer.devices=1.")
    data.trainer = trainer
    device = trainer.strategy.root_device
    trainer.precision_plugin.convert_module(module).to(device).eval()  # all of them change the module itself
    if has_grid:
        _require_one_grid(module.backbone, device)
    print_line(f"Searching layers of {module.backbone.name} by {data.name} {data.split}, {cfg.objective}")
    with run_products(trainer):
        group, context = ProcessGroup(0, 1, device, local=1), trainer.precision_plugin.forward_context
        scorer = LayerScorer(EvaluationSetup(module, data, data.split, group, context), module.specs[0])

        def score_sets(sets: "Sequence[Layers]") -> list[float]:
            return [_require_score(select_number(metrics, cfg.objective), cfg) for metrics in scorer.score_sets(sets)]

        yield from search_beam(score_sets, choices, beam, most)


def _list_layers(backbone: "Backbone") -> list[int]:
    """List all layers of a backbone."""
    if not backbone.layer_choices:
        raise UserError(f"`backbone`: {backbone.name} has no layers to choose from. Give another, as backbone=dinov2.")
    return [*backbone.layer_choices]


def _list_choices(backbone: "Backbone") -> list[int]:
    """List the layers that a backbone reads, if each of its maps is of one of them and of one image alone."""
    from semcorr.models.backbones.wrapped import WrappedBackbone

    if backbone.needs_pair:
        raise UserError(
            f"`backbone`: features of {backbone.name} are made of both images of a pair, and not layer by layer. Give "
            "another backbone, or backbone.components=null."
        )
    if isinstance(backbone, WrappedBackbone):
        raise UserError(
            "`backbone.debias` and `backbone.upsample` change features of all layers together, and a search puts maps "
            "of single layers side by side. Leave them out."
        )
    _list_layers(backbone)
    return [*vars(backbone)["layers"]]


def _require_one_grid(backbone: "Backbone", device: "torch.device") -> None:
    """Refuse a number of cells where layers have different ones: an evaluation of each set would have another size."""
    import torch

    with torch.no_grad():
        maps = backbone.read_maps(torch.zeros(1, 3, backbone.size, backbone.size, device=device)).values
    if len({values.shape[-1] for values in maps.values()}) > 1:
        raise UserError(
            f"`backbone.grid`: layers of {backbone.name} have different grids, so that images would have another size "
            f"for each set of layers. Give their size, as backbone.size={backbone.size}."
        )


def _require_score(score: float | None, cfg: "DictConfig") -> float:
    """Refuse a number that the pairs do not have."""
    if score is None or not math.isfinite(score):
        raise UserError(
            f"`objective`: {cfg.objective} is not defined on these pairs: no keypoint is of its kind. Give another."
        )
    return score


def _describe_rounds(rounds: "Sequence[Sequence[LayerSet]]") -> str:
    """Say how far an interrupted search has come."""
    if not rounds:
        return "No set of layers was scored. Run the same line again"
    best = _choose_best(rounds)
    return f"The best set until here: {_format_override(best.layers)} ({best.score:.4f}). Run the same line again"


def _choose_best(rounds: "Sequence[Sequence[LayerSet]]") -> "LayerSet":
    """Return the best set; of equals, the smallest."""
    return max((sets[0] for sets in rounds), key=lambda layer_set: layer_set.score)


def _format_override(layers: Sequence[int]) -> str:
    return f"backbone.layers=[{','.join(map(str, layers))}]"


def print_sets(rounds: "Sequence[Sequence[LayerSet]]", objective: str) -> None:
    """Print the best sets of each size, and the setting that reads the best of all.

    Args:
        rounds: Scored sets of one layer, of two, and so on, each with the best first.
        objective: Name of the score in metrics.json.
    """
    best = _choose_best(rounds)
    table = Table(
        title=f"Sets of layers, by {objective}", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    for header in ("size", "scored", "layers", "score"):
        table.add_column(header, justify="left" if header == "layers" else "right", overflow="fold")
    for sets in rounds:
        for i, (layers, score) in enumerate(sets[:SHOWN]):
            first = (str(len(layers)), str(len(sets))) if i == 0 else ("", "")
            mark = "  best" if layers == best.layers else ""
            table.add_row(*first, ",".join(map(str, layers)), f"{score:.4f}{mark}")
        table.add_section()
    Terminal().print_table(table)
    print(f"Use them by {_format_override(best.layers)}")


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr search`, and return its exit code."""
    return run_app(app, words, "semcorr search")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
