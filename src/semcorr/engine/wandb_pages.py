"""Pages in W&B besides scalars: matches, maps and categories at each validation, and all scores at the end."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.loggers import warn_once_on_failure
from semcorr.engine.module import CorrespondenceModule
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.predictions import load_predictions
from semcorr.visualization import predictions as draw
from semcorr.visualization import similarity as similarity_map

ALPHA = "0.1"
PAIRS_PER_PAGE = 6  # pairs on a page


class WandbPagesCallback(Callback):
    """A callback that logs `val/matches`, `val/similarity` and `val/categories` after each validation.

    Every process has a share of the rows; the first one gathers and draws them.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the pages; by now the module has logged its scores, and still has the rows."""
        board = find_wandb_run(trainer.loggers)
        if board is None or trainer.sanity_checking:
            return
        data = getattr(trainer, "datamodule")  # noqa: B009 - Lightning does not declare it
        assert isinstance(pl_module, CorrespondenceModule)
        assert isinstance(data, PairDataModule)
        table = pl_module.evaluator.gather_tables()["predictions"]
        if not trainer.is_global_zero:
            return
        names = set(table["pair"].to_pylist())
        pairs = {pair.name: pair for pair in data.pairs("val") if pair.name in names}
        with warn_once_on_failure(board):
            matches = draw.plot_predictions(
                draw.evenly_spaced([*pairs.values()], PAIRS_PER_PAGE),
                table,
                float(ALPHA),
                tolerance=pl_module.specs[0].protocol.tolerance,
            )
            log_page(board, "val", pl_module.result.scores["category"], matches, trainer.global_step)
            maps = similarity_map.plot_similarity_page(pl_module, data, pairs, load_predictions(table))
            log_image(board, "val/similarity", maps, similarity_map.SIMILARITY_LEGEND, trainer.global_step)


def find_wandb_run(loggers: Iterable[Logger]) -> WandbLogger | None:
    """Return the logger to W&B, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)


def log_image(board: WandbLogger, key: str, image: Image.Image, caption: str, step: int) -> None:
    """Log an image with its caption."""
    import wandb

    board.experiment.log({key: wandb.Image(image, caption=caption), "trainer/global_step": step})


def log_page(board: WandbLogger, stage: str, categories: JsonMapping, page: Image.Image, step: int) -> None:
    """Log a table of PCK by category, and an image of matches."""
    import wandb

    rows = category_pck(categories)
    board.experiment.log(
        {
            f"{stage}/categories": wandb.Table(columns=["category", *SUBSETS], data=rows),
            f"{stage}/matches": wandb.Image(page, caption=f"blue disc: right at {ALPHA}; red cross: wrong"),
            "trainer/global_step": step,
        }
    )


def category_pck(categories: JsonMapping) -> list[list[object]]:
    """Return PCK@0.1 per image by category, in percent; None where a category has no such keypoints.

    >>> category_pck({"cat": {subset: {"image": {"0.1": 0.5}} for subset in ("all", "geo", "std")}})
    [['cat', 50.0, 50.0, 50.0]]
    """

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return [
        [name, *(percent(scores[subset]["image"][ALPHA]) for subset in SUBSETS)] for name, scores in categories.items()
    ]


def log_summary(loggers: Sequence[Logger], metrics: JsonMapping, run_dir: Path, step: int) -> None:
    """Log the summary of a run: every number of metrics.json, its curves, its categories and its page of matches."""
    board = find_wandb_run(loggers)
    if board is None or "pck" not in metrics:
        return
    with warn_once_on_failure(board):
        _log_summary(board, metrics, run_dir, step)


def _log_summary(board: WandbLogger, metrics: JsonMapping, run_dir: Path, step: int) -> None:
    """Log the summary of a run, without the handling of errors."""
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
    with open_image(run_dir / "matches.png") as page:  # last: if it could not be drawn, the rest is logged
        log_page(board, "test", metrics["category"], page.copy(), step)


def flatten_metrics(tree: Mapping[str, object], prefix: str = "") -> JsonObject:
    """Return the leaves of nested metrics by their paths.

    >>> flatten_metrics({"pck": {"all": {"0.1": 0.5}}, "pairs": 3})
    {'pck/all/0.1': 0.5, 'pairs': 3}
    """
    leaves: JsonObject = {}
    for key, value in tree.items():
        leaves |= flatten_metrics(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
