"""What W&B is shown besides scalars: matches, maps and categories at each validation; at the end all scores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.loggers import warn_once_on_failure
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.predictions import load_predictions
from semcorr.visualization import predictions as draw
from semcorr.visualization import similarity as similarity_map

ALPHA = "0.1"
SHOWN = 6  # pairs of a page


class WandbPagesCallback(Callback):
    """After a validation: `val/matches`, `val/similarity` and `val/categories`.

    Every process has a share of the rows, one draws.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module has logged its scores by now, and still has the rows."""
        board = find_wandb_run(trainer.loggers)
        if board is None or trainer.sanity_checking:
            return
        module: object = pl_module
        table, data = module.evaluator.gather_tables()["predictions"], module.trainer.datamodule
        if not trainer.is_global_zero:
            return
        found = set(table["pair"].to_pylist())
        pairs = {pair.name: pair for pair in data.pairs("val") if pair.name in found}
        with warn_once_on_failure(board):
            matches = draw.plot_predictions(draw.evenly_spaced([*pairs.values()], SHOWN), table)
            log_page(board, "val", module.result.scores["category"], matches, trainer.global_step)
            maps = similarity_map.plot_similarity_page(module, data, pairs, load_predictions(table))
            log_image(board, "val/similarity", maps, similarity_map.LEGEND, trainer.global_step)


def find_wandb_run(loggers: Iterable[Logger]) -> WandbLogger | None:
    """The one that is W&B's, if one is."""
    return next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)


def log_image(board: WandbLogger, key: str, image: object, caption: str, step: int) -> None:
    """A picture."""
    import wandb

    board.experiment.log({key: wandb.Image(image, caption=caption), "trainer/global_step": step})


def log_page(board: WandbLogger, stage: str, categories: JsonMapping, page: object, step: int) -> None:
    """A table of PCK by category, and a picture."""
    import wandb

    rows = category_pck(categories)
    board.experiment.log(
        {
            f"{stage}/categories": wandb.Table(columns=["category", *SUBSETS], data=rows),
            f"{stage}/matches": wandb.Image(page, caption=f"green: within {ALPHA} of the truth; red: not"),
            "trainer/global_step": step,
        }
    )


def category_pck(categories: JsonMapping) -> list[list[object]]:
    """PCK@0.1 per image, in percent; None where a category has no such keypoints.

    >>> category_pck({"cat": {subset: {"image": {"0.1": 0.5}} for subset in ("all", "geo", "std")}})
    [['cat', 50.0, 50.0, 50.0]]
    """

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return [
        [name, *(percent(found[subset]["image"][ALPHA]) for subset in SUBSETS)] for name, found in categories.items()
    ]


def log_summary(loggers: Sequence[Logger], metrics: JsonMapping, run_dir: Path, step: int) -> None:
    """The run's summary: every number of metrics.json; its curves, its categories and its page."""
    board = find_wandb_run(loggers)
    if board is None or "pck" not in metrics:
        return
    with warn_once_on_failure(board):
        _conclude(board, metrics, run_dir, step)


def _conclude(board: WandbLogger, metrics: JsonMapping, run_dir: Path, step: int) -> None:
    import wandb

    from semcorr.data.open_image import open_image

    curve = [
        [subset, by, float(alpha), value]
        for subset in SUBSETS
        for by, values in metrics["pck"][subset].items()
        for alpha, value in values.items()
    ]
    board.experiment.log({"test/curves": wandb.Table(columns=["keypoints", "per", "alpha", "pck"], data=curve)})
    board.experiment.summary.update(flatten_metrics({"scores": json.loads(json.dumps(metrics))}))
    with open_image(run_dir / "matches.png") as page:  # last: where it could not be drawn, the rest is there
        log_page(board, "test", metrics["category"], page.copy(), step)


def flatten_metrics(tree: JsonMapping, prefix: str = "") -> JsonObject:
    """Leaves by their paths.

    >>> flatten_metrics({"pck": {"all": {"0.1": 0.5}}, "pairs": 3})
    {'pck/all/0.1': 0.5, 'pairs': 3}
    """
    found: JsonObject = {}
    for key, value in tree.items():
        found |= flatten_metrics(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
