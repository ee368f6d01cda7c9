"""Checkpoints as files: complete or absent, read without running code, and refused where they are damaged.

A checkpoint is the zip archive that `torch.save` writes. It has a checksum (CRC-32) of each of its records, which
`torch.load` does not verify: here they are verified before anything is read.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.files import replace_file
from semcorr.core.pickles import require_torch_file
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.renamed_targets import RENAMED_TARGETS
from semcorr.engine.run_dir import WEIGHTS, checkpoint_path, flatten_config
from semcorr.engine.shared_run import read_shared_weights
from semcorr.models.weights.checkpoints import format_reason
from semcorr.models.weights.file_kinds import describe_other, describe_unreadable
from semcorr.models.weights.loading import require_finite_weights

if TYPE_CHECKING:  # it imports the callbacks, which read checkpoints
    from semcorr.engine.module import CorrespondenceModule

TRAINED_AS = "trained_as"
# What trained weights depend on in a configuration.
SETTINGS = (
    "seed",
    "data",
    "augment",
    "backbone",
    "finetune",
    "head",
    "pairs",
    "feature_dropout",
    "loss",
    "optimizer",
    "scheduler",
    "start_from",
    "monitor",
    "keep_from",
)
TEACHER = "callbacks.ema_teacher."  # options of the one callback that they depend on as well
# Keys in these sections that may change.
CHANGEABLE_KEYS = ("root", "weights", "block_weights", "pretrained", "workers", "cache_gb", "encode_batch", "split")
REMEDY = "Take another copy of it, or train again"
RESUME_STATE = {  # what Lightning reads of a checkpoint besides the weights
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}


class CheckpointFiles(TorchCheckpointIO):
    """Writer and reader of Lightning's checkpoints.

    Lightning's own writer goes through a folder for temporary files, and may leave half a file where that is on another
    disk.

    Args:
        settings: Settings that the weights are trained by, from `weight_settings`; written beside the weights.
    """

    def __init__(self, settings: JsonMapping) -> None:
        self.settings = dict(settings)

    def save_checkpoint(self, checkpoint: JsonObject, path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint beside `path`, and replace `path` by it once it is on the disk.

        Raises:
            UserError: It cannot be written, for example because the disk is full. An earlier file at `path` stays.
        """
        path = Path(path)
        with replace_file(path, "run_dir") as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                _save_torch(_copy_unshared({**checkpoint, TRAINED_AS: self.settings}, {}), file)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> JsonObject:
        """Read a checkpoint onto the CPU, without running code from it."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _save_torch(content: object, file: IO[bytes]) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # raised by PyTorch's writer after the file's own error
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or error from None


def _copy_unshared(value: object, texts: dict[str, str]) -> object:
    """Copy a tree so that equal trees give equal bytes: a pickle records which parts are the same object in memory."""
    if type(value) is dict:
        return {_copy_unshared(key, texts): _copy_unshared(child, texts) for key, child in value.items()}
    if type(value) is list:
        return [_copy_unshared(child, texts) for child in value]
    if type(value) is tuple:
        return tuple(_copy_unshared(child, texts) for child in value)
    if type(value) is str:
        return texts.setdefault(value, value)
    return value.clone() if isinstance(value, Tensor) and value.ndim == 0 else value


def weight_settings(cfg: JsonObject) -> JsonObject:
    """Return the settings that trained weights depend on, without those of places and speed, which may change later.

    >>> weight_settings({"seed": 1, "data": {"root": "here", "steps": 3}, "name": "x"})
    {'seed': 1, 'data.steps': 3}
    >>> weight_settings({"monitor": "val/geo/pck@0.1", "callbacks": {"ema_teacher": {"momentum": 1}, "own": {"x": 2}}})
    {'monitor': 'val/geo/pck@0.1', 'callbacks.ema_teacher.momentum': 1}
    """
    flat = flatten_config({key: cfg[key] for key in (*SETTINGS, "callbacks") if key in cfg})
    flat = {key: flat[key] for key in flat if key.partition(".")[0] != "callbacks" or key.startswith(TEACHER)}
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in CHANGEABLE_KEYS}


def read_checkpoint(run: Path, which: str = "best") -> JsonObject:
    """Read a checkpoint of a run, onto the CPU, without running code from it.

    Args:
        run: Directory of the run.
        which: `best` or `last`.

    Raises:
        UserError: The file does not exist, is damaged, or is not a checkpoint of semcorr.
    """
    path = checkpoint_path(run, which)
    if not path.is_file():
        raise UserError(f"`checkpoint`: {path} does not exist. Give the run_dir of a training run.")
    return load_checkpoint(path)


def load_checkpoint(path: Path) -> JsonObject:
    """Read the file of a checkpoint, as `read_checkpoint` does."""
    try:
        if problem := describe_other(path):
            raise checkpoint_error(path, problem.partition(". ")[0])
        content = read_shared_weights(path) if path.name == WEIGHTS else _load_torch(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive or a foreign pickle leads to
        raise checkpoint_error(path, format_reason(error)) from error
    require_weights(path, content)
    assert isinstance(content, dict), "require_weights refuses others"
    return content


def _load_torch(path: Path) -> object:
    """Read an archive of `torch.save`."""
    if not zipfile.is_zipfile(path):
        problem = describe_unreadable(path) or "is not a checkpoint of semcorr. Give one"
        raise checkpoint_error(path, problem.partition(". ")[0])
    require_intact(path)
    require_torch_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def require_intact(path: Path) -> None:
    """Refuse an archive whose records do not match their checksums, or would take more memory than the file has.

    Raises:
        ValueError: A record is wrong; the message says how.
        zipfile.BadZipFile: The file is not an archive, or its records are out of place.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records overlap")
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two of its records have one name")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its record {damaged} is another")


def checkpoint_error(path: Path, reason: str) -> UserError:
    """Make the error for a checkpoint that cannot be used."""
    return UserError(f"`checkpoint`: {path} is damaged ({reason:.200}). {REMEDY}.")


def require_weights(path: Path, content: object) -> None:
    """Refuse what is not a checkpoint of semcorr: finite weights by name, and which base weights they belong to."""
    if not isinstance(content, dict):
        raise checkpoint_error(path, f"it holds a {type(content).__name__}, not a dictionary")
    weights, base = content.get("state_dict"), content.get("base")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise checkpoint_error(path, "it holds no `state_dict` of tensors")
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("backbone", "sha256")):
        raise checkpoint_error(path, "it does not say in `base` which weights it was trained from")
    for name, value in weights.items():
        if not isinstance(name, str) or value.layout != torch.strided or value.is_meta:
            raise checkpoint_error(
                path, f"its `state_dict` holds something else than weights, by the name {name!r:.80}"
            )
    require_finite_weights(weights, f"`checkpoint`: {path}")


def load_trained(
    module: "CorrespondenceModule", run: Path, which: str = "best", may_differ_in_loss: bool = False
) -> None:
    """Load the weights that a run trained into a module.

    Args:
        module: The module, with the same backbone, tuning and head.
        run: Directory of the run.
        which: `best` or `last`.
        may_differ_in_loss: Leave the weights of the module's loss as they are, if it is another than the run's.

    Raises:
        UserError: The weights are damaged, of another base, of other parts, or of another run than its config.yaml.
    """
    path = checkpoint_path(run, which)
    content = read_checkpoint(run, which)
    if may_differ_in_loss:
        content = {**content, "state_dict": replace_other_loss(content["state_dict"], module.trainable_state_dict())}
    require_fit(module, content, path)
    config = run / "config.yaml"
    settings = weight_settings(read_plain_config(config)) if config.is_file() else {}
    if key := find_changed_setting(content, settings):
        raise UserError(
            f"{path} was trained with {key}={content[TRAINED_AS][key]}, and {config} says {settings[key]}: they are of "
            "two runs. Take another copy of one of them."
        )
    module.load_state_dict(content["state_dict"], strict=False)


def replace_other_loss(trained: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return trained weights with a module's own of its loss, where the trained ones are of another loss.

    >>> one, two = torch.zeros(1), torch.zeros(2)
    >>> [*replace_other_loss({"head.w": one, "loss.t": one}, {"head.w": two, "loss.theta": one})]
    ['head.w', 'loss.theta']
    """
    trained_loss, own_loss = (
        {name: value for name, value in weights.items() if name.startswith("loss.")} for weights in (trained, own)
    )
    shapes, own_shapes = ({name: value.shape for name, value in loss.items()} for loss in (trained_loss, own_loss))
    if shapes == own_shapes:
        return dict(trained)
    return {name: value for name, value in trained.items() if name not in trained_loss} | own_loss


def require_fit(module: "CorrespondenceModule", content: JsonObject, path: Path) -> None:
    """Refuse weights of another base, of other parts, or of other shapes than the module's.

    Args:
        module: The module that would load them.
        content: Content of a checkpoint.
        path: File of the checkpoint, for errors.
    """
    module.on_load_checkpoint(content)
    state = module.state_dict()
    for name, value in content["state_dict"].items():
        if name in state and (value.shape, value.dtype) != (state[name].shape, state[name].dtype):
            saved, expected = (f"{list(tensor.shape)} of {tensor.dtype}" for tensor in (value, state[name]))
            raise checkpoint_error(
                path, f"its weights {name} are {saved}, this run's are {expected}".replace("torch.", "")
            )


def find_changed_setting(content: JsonMapping, settings: JsonMapping) -> str | None:
    """Return the first setting that differs from what weights were trained by; None if there is none.

    Old checkpoints do not record their settings: for them, none differs.

    Args:
        content: Content of a checkpoint.
        settings: Settings of a configuration, from `weight_settings`.

    >>> find_changed_setting({"trained_as": {"seed": 1, "finetune.blocks": 2}}, {"seed": 7, "finetune.blocks": 2})
    'seed'
    """
    trained_as = content.get(TRAINED_AS)
    if not isinstance(trained_as, dict):
        return None
    for key, value in trained_as.items():
        saved = RENAMED_TARGETS.get(value, value) if key.endswith("_target_") else value
        if key in settings and settings[key] != saved:
            return str(key)
    return None
