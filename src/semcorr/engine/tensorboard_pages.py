"""Pages in TensorBoard besides scalars: pictures, and the HPARAMS tab."""

from collections.abc import Mapping

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from semcorr.core.text_files import JsonMapping
from semcorr.engine.run_dir import UNSCORED_SECTIONS, flatten_config
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.sections import HEADLINES


def log_tensorboard_pictures(
    board: TensorBoardLogger, pictures: Mapping[str, tuple[Image.Image, str]], step: int
) -> None:
    """Log pictures by their names; TensorBoard has no captions."""
    for name, (picture, _) in pictures.items():
        board.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def log_hparams(board: TensorBoardLogger, metrics: JsonMapping, step: int) -> None:
    """Log the options that scores depend on, beside the scores: a row of the HPARAMS tab.

    Args:
        board: The logger, which has the configuration of the run.
        metrics: Content of metrics.json.
        step: Number of training steps.
    """
    scores = (
        {f"test/{subset}/pck@0.1": metrics["pck"][subset]["image"]["0.1"] for subset in SUBSETS}
        if "pck" in metrics
        else {
            f"test/{name}": metrics[section][name]
            for section, names in HEADLINES.items()
            if section in metrics
            for name in names
        }
    )
    options = flatten_config({key: value for key, value in board.hparams.items() if key not in UNSCORED_SECTIONS})
    known = {name: value for name, value in scores.items() if value is not None}
    board.log_hyperparams(options, known, step)
