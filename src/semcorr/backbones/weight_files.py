"""A file of weights, or a folder of them, to one state dict, whatever it is wrapped in."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semcorr.backbones.torchscript import is_torchscript, read_torchscript
from semcorr.core.paths import require_file_name, require_plain, shorten
from semcorr.core.pickles import DAMAGE, require_torch_file
from semcorr.core.text_files import REPORTS, read_json, read_mapping
from semcorr.errors import UserError

# Where checkpoints keep the network, best first: self-distillation evaluates its teacher.
NESTS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model", "student")
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")  # torch.compile and DistributedDataParallel
FAULTS = (*DAMAGE, SafetensorError)


def read_weights(path: str | Path, option: str = "backbone.weights") -> dict[str, Tensor]:
    """A flat state dict from safetensors, a pickle of tensors, a TorchScript archive, or a folder with either.

    No code in any of them is run. `option` is what the path was given as.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"`{option}`: {path} does not exist. Give the path of a weights file.")
    content: dict[str, Any] = {}
    files = _members(path, option) if path.is_dir() else [path]
    for file in files:
        try:
            require_plain(file)
            content |= _read(file)
        except UserError:
            raise
        except FAULTS as error:
            raise _unreadable(file, error, option) from None
    try:
        tensors = unwrap(content)
    except RecursionError:
        raise _unreadable(path, ValueError("it contains itself"), option) from None
    _require_stored(tensors, files, option)
    return tensors


def _require_stored(tensors: Mapping[str, Tensor], files: Sequence[Path], option: str) -> None:
    """A view of few bytes may claim any shape: no tensor is larger than what it was read from."""
    most = sum(file.stat().st_size for file in files)
    for key, value in tensors.items():
        if value.numel() * value.element_size() > most:
            raise UserError(
                f"`{option}`: {files[0]} has {most} bytes, and {key} in it claims to be {tuple(value.shape)}. "
                "Take another copy of it, or give a safetensors file."
            )


def require_folder(folder: Path, option: str) -> None:
    """Refuse a folder in Hugging Face's layout, before a library reads it, for what `read_weights` would refuse.

    The files in it may be links: its cache is made of them.
    """
    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        require_plain(file)
        try:
            if file.name.endswith(".index.json"):
                _shards(file, option)
            elif file.suffix == ".json":
                read_json(file, "Take another copy of the folder.", REPORTS)
            elif file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
                require_torch_file(file)
        except UserError:
            raise
        except FAULTS as error:
            raise _unreadable(file, error, option) from None


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's own tensors in a checkpoint; of a network with heads beside its `backbone.`, that.

    >>> unwrap({"epoch": 3, "teacher": {"module.backbone.norm.bias": torch.ones(1), "module.head.bias": torch.ones(2)}})
    {'norm.bias': tensor([1.])}
    """
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping):
            return unwrap(content[nest])
    tensors = {WRAPPERS.sub("", key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("teacher.backbone.", "backbone."):
        if any(key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        return load_file(file)
    if is_torchscript(file):
        return read_torchscript(file)
    require_torch_file(file)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # a script's options
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is read all the same
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}")
    return dict(content)


def _members(folder: Path, option: str) -> list[Path]:
    """The file or the shards in a folder of Hugging Face's layout."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            return _shards(index, option)
    raise UserError(
        f"`{option}`: {folder} has neither model.safetensors nor pytorch_model.bin. "
        "Give a folder that has, or a weights file."
    )


def _shards(index: Path, option: str) -> list[Path]:
    remedy = "Take another copy of the folder."
    places = read_mapping(index, remedy).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"`{option}`: {index} has no `weight_map`, from weights to files. {remedy}")
    for key, name in places.items():
        require_file_name(name, f"`{option}`: {index}, weight {shorten(key)},")
    files = [index.with_name(name) for name in sorted(set(places.values()))]
    if absent := [file for file in files if not file.exists()]:
        raise UserError(f"`{option}`: {index} names {absent[0].name}, which is not beside it. {remedy}")
    return files


def _unreadable(file: Path, error: Exception, option: str) -> UserError:
    called = re.search(r"GLOBAL (\S+)", str(error))
    if called and isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"`{option}`: {file} is a pickle that wants to call {called[1]}; nothing in it was run. "
            "Give a safetensors file or a plain PyTorch state dict."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"`{option}`: {file} is not a safetensors file or a plain PyTorch state dict ({reason}). Give one that is."
    )
