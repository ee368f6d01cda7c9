"""Pages of a run in its dashboards, W&B and TensorBoard: matches and maps at each validation, scores at the end."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from semcorr.core.text_files import JsonMapping
from semcorr.data.datamodule import PairDataModule
from semcorr.engine import tensorboard_pages, wandb_pages
from semcorr.engine.loggers import warn_once_on_failure
from semcorr.engine.module import CorrespondenceModule
from semcorr.metrics.predictions import load_predictions
from semcorr.visualization import predictions as draw
from semcorr.visualization import similarity as similarity_map

Dashboard = WandbLogger | TensorBoardLogger
MATCHES_LEGEND = "blue disc: right at 0.1; red cross: wrong"
PAIRS_PER_PAGE = 6  # pairs on a page


class PagesCallback(Callback):
    """A callback that logs `val/matches`, `val/similarity` and, in W&B, `val/categories` after each validation.

    Every process has a share of the rows; the first one gathers and draws them.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Define which value of a curve the summary of a run holds."""
        for board in find_dashboards(trainer.loggers):
            if isinstance(board, WandbLogger) and trainer.is_global_zero:
                with warn_once_on_failure(board):
                    wandb_pages.define_summaries(board)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the pages; by now the module has logged its scores, and still has the rows."""
        boards = find_dashboards(trainer.loggers)
        if not boards or trainer.sanity_checking:
            return
        data = getattr(trainer, "datamodule")  # noqa: B009 - Lightning does not declare it
        assert isinstance(pl_module, CorrespondenceModule)
        assert isinstance(data, PairDataModule)
        table = pl_module.evaluator.gather_tables()["predictions"]
        if not trainer.is_global_zero:
            return
        names = set(table["pair"].to_pylist())
        pairs = {pair.name: pair for pair in data.pairs("val") if pair.name in names}
        with warn_once_on_failure(boards[0]):
            chosen = draw.evenly_spaced([*pairs.values()], PAIRS_PER_PAGE)
            tolerance = pl_module.specs[0].protocol.tolerance
            matches = draw.plot_predictions(chosen, table, tolerance=tolerance)
            maps = similarity_map.plot_similarity_page(pl_module, data, pairs, load_predictions(table))
            pictures = {
                "val/matches": (matches, MATCHES_LEGEND),
                "val/similarity": (maps, similarity_map.SIMILARITY_LEGEND),
            }
            log_pictures(boards, pictures, trainer.global_step)
        for board in boards:
            if isinstance(board, WandbLogger):
                with warn_once_on_failure(board):
                    categories = pl_module.result.scores["category"]
                    wandb_pages.log_categories(board, "val", categories, trainer.global_step)


def find_dashboards(loggers: Iterable[Logger]) -> list[Dashboard]:
    """Return the loggers that show pictures."""
    return [logger for logger in loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]


def log_pictures(boards: Sequence[Dashboard], pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
    """Log pictures in each dashboard; a dashboard that cannot be written gives a warning.

    Args:
        boards: The dashboards.
        pictures: Each picture with its caption, by its name in the dashboard, such as `val/matches`.
        step: Number of training steps.
    """
    for board in boards:
        with warn_once_on_failure(board):
            if isinstance(board, WandbLogger):
                wandb_pages.log_wandb_pictures(board, pictures, step)
            else:
                tensorboard_pages.log_tensorboard_pictures(board, pictures, step)


def log_summary(loggers: Sequence[Logger], metrics: JsonMapping, run_dir: Path, step: int) -> None:
    """Log the scores of a run, with its page of matches.

    Args:
        loggers: Loggers of the run.
        metrics: Content of metrics.json.
        run_dir: Directory of the run.
        step: Number of training steps.
    """
    from semcorr.data.open_image import open_image

    boards = find_dashboards(loggers)
    for board in boards:
        with warn_once_on_failure(board):
            if isinstance(board, TensorBoardLogger):
                tensorboard_pages.log_hparams(board, metrics, step)
            elif "pck" in metrics:
                wandb_pages.log_scores(board, metrics, run_dir, step)
    if boards and "pck" in metrics:
        with warn_once_on_failure(boards[0]), open_image(run_dir / "matches.png") as page:  # it may not be drawn
            log_pictures(boards, {"test/matches": (page.copy(), MATCHES_LEGEND)}, step)
