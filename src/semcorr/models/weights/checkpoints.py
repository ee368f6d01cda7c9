"""Reading of one state dict from a file of weights or a folder of them, whatever it is wrapped in."""

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain, quote_value, require_plain
from semcorr.core.pickles import DAMAGE, require_torch_file
from semcorr.core.text_files import REPORTS, JsonObject, read_json
from semcorr.models.weights.file_kinds import AGAIN, describe_other, describe_unreadable, is_safetensors
from semcorr.models.weights.paths import list_library_files, list_shards, list_weight_files, require_json
from semcorr.models.weights.torchscript import is_torchscript, read_torchscript
from semcorr.models.weights.wrappings import list_prefixes, unwrap_checkpoint

# Names of parameters, which must be floating-point numbers; not of indices, masks or counters.
NUMBERS = re.compile(r"(weight|bias|gamma|beta|lambda1|running_mean|running_var|token|tokens|pos_embed)$")
QUANTISED = re.compile(r"(^|\.)(qweight|qzeros|weight_scale|weight_packed|SCB|absmax|quant_map)$")
HARMLESS = re.compile(  # types of what scripts store beside weights: figures, dates, paths, settings
    r"numpy(\._?core)?\.(multiarray\.scalar|dtype)|numpy\.dtypes\.\w+|_codecs\.encode|datetime\.\w+"
    r"|pathlib(\._local)?\.\w+|omegaconf\.[\w.]+|typing\.Any|collections\.defaultdict"
    r"|(builtins\.)?(dict|list|tuple|set|int|float|str|bool)"
)
FAULTS = (*DAMAGE, SafetensorError)


def read_weights(path: str | Path, option: str = "backbone.weights") -> dict[str, Tensor]:
    """Read a flat state dict from safetensors, a pickle of tensors, a TorchScript archive, or a folder of them.

    No code in any of them is run.

    Args:
        path: A weights file, an index of shards, or a folder with either.
        option: The option that the path was given as, for messages.

    Raises:
        UserError: The path holds no weights of a single network, is damaged, or its pickle calls anything else.
    """
    path = require_weights_file(path, option)
    content: JsonObject = {}
    files = list_weight_files(path, option)
    for file in files:
        part = _read_file(file, option)
        if duplicate := next((key for key in part if key in content), None):
            raise UserError(
                f"`{option}`: {file} holds {quote_value(duplicate)}, and so does another part: they are of two models. "
                "Take another copy of the folder."
            )
        content |= part
    _refuse_run_checkpoint(content, path, option)
    _refuse_tuned_blocks(content, path, option)
    try:
        tensors = unwrap_checkpoint(content)
    except RecursionError:
        raise _build_read_error(path, ValueError("it contains itself"), option) from None
    if not tensors:
        listed = ", ".join(quote_value(key) for key in list(content)[:4])
        raise UserError(
            f"`{option}`: {path} holds no weights{f', only {listed}' if listed else ' at all'}. "
            "Give a file that holds the model's state dict."
        )
    _require_single(tensors, path, option)
    require_plain_tensors(tensors, path, option)
    _refuse_oversized_tensors(tensors, files, option)
    if option != "head.weights":  # weights that a head adds may start as zero
        _refuse_unfinished_download(tensors, files, option)
    return tensors


def read_weights_content(path: str | Path, option: str) -> JsonObject:
    """Read all of one file of weights, in whichever format it is; no code in it is run.

    Args:
        path: A weights file.
        option: The option that the path was given as, for messages.

    Raises:
        UserError: It does not exist, is damaged, or is not a file of weights.
    """
    return _read_file(require_weights_file(path, option), option)


def require_weights_file(path: str | Path, option: str) -> Path:
    """Refuse a path that does not exist, or a file that holds no weights, without reading all of it."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"`{option}`: {path} does not exist. Give the path of a weights file.")
    if path.is_file() and not path.name.endswith(".index.json") and (message := describe_other(path)):
        raise UserError(f"`{option}`: {path} {message}")
    return path


def _refuse_run_checkpoint(content: JsonObject, path: Path, option: str) -> None:
    """Refuse the checkpoint of a training run: it holds only the trained weights, not the network around them."""
    base = content.get("base")
    if isinstance(base, Mapping) and "sha256" in base and "state_dict" in content:
        raise UserError(
            f"`{option}`: {path} is the checkpoint of a training run of semcorr, with only the weights that moved. "
            "Give the run as checkpoint=RUN_DIR, or make a whole file by `python -m semcorr.export RUN_DIR`."
        )


def _refuse_tuned_blocks(content: JsonObject, path: Path, option: str) -> None:
    """Refuse a file of the unified benchmark's training, which holds the blocks that it tuned, as a list."""
    if isinstance(content.get("dino"), list):
        raise UserError(
            f"`{option}`: {path} holds tuned blocks alone, as the unified benchmark's training leaves them. Give "
            "backbone=dinov2 with its own weights, and this file as finetune.block_weights with finetune.blocks=2."
        )


def _require_single(tensors: Mapping[str, Tensor], path: Path, option: str) -> None:
    """Refuse a file with several networks of one kind: which of them to evaluate is not known."""
    if len(names := list_prefixes(tensors)) > 1:
        listed = " and ".join(repr(name) for name in sorted(names)[:4])
        raise UserError(
            f"`{option}`: {path} holds {len(names)} networks, under {listed}. Give a file that holds one of them."
        )


def require_plain_tensors(tensors: Mapping[str, Tensor], path: Path, option: str) -> None:
    """Refuse tensors that are quantised, sparse or complex, or that hold no data."""
    for key, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        is_integer = not (value.is_floating_point() or value.is_complex()) and value.ndim > 0 and NUMBERS.search(key)
        if value.is_quantized or "float8" in kind or "float4" in kind or is_integer or QUANTISED.search(key):
            raise UserError(
                f"`{option}`: {path} is quantised ({key} is {kind}). Give the model's weights as float16, bfloat16 or "
                "float32."
            )
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise UserError(
                f"`{option}`: {path}: {key} is not a plain tensor of numbers ({value.layout}, {kind}, on "
                f"{value.device}). Give a file of dense tensors."
            )


def _refuse_unfinished_download(tensors: Mapping[str, Tensor], files: Sequence[Path], option: str) -> None:
    """Refuse a safetensors file that ends in zeros, as an unfinished download does; archives have checksums instead."""
    if not any(_ends_in_zeros(file) for file in files if is_safetensors(file)):
        return
    zeros = [key for key, value in tensors.items() if key.endswith("weight") and value.ndim > 1 and not value.any()]
    if zeros:
        raise UserError(
            f"`{option}`: {files[-1]} ends in zeros, as a download does that never finished: {len(zeros)} of its "
            f"weights are nothing else, as {zeros[-1]}. {AGAIN} again."
        )


def _ends_in_zeros(file: Path) -> bool:
    """Tell whether the last 256 bytes of a file are zero."""
    with open_plain(file) as stream:
        stream.seek(-min(file.stat().st_size, 256), os.SEEK_END)
        return not stream.read().strip(b"\0")


def _refuse_oversized_tensors(tensors: Mapping[str, Tensor], files: Sequence[Path], option: str) -> None:
    """Refuse a tensor larger than the files that it was read from: a view of few bytes may claim any shape."""
    total_bytes = sum(file.stat().st_size for file in files)
    for key, value in tensors.items():
        if value.numel() * value.element_size() > total_bytes:
            raise UserError(
                f"`{option}`: {files[0]} has {total_bytes} bytes, and {key} in it claims to be {tuple(value.shape)}. "
                "Take another copy of it, or give a safetensors file."
            )


def require_weights_folder(folder: Path, option: str) -> None:
    """Refuse a folder in Hugging Face's layout for what `read_weights` would refuse, before a library reads it.

    The files in it may be links: the hub's cache is made of them. Weights that the library ignores may be anything.
    """
    weights = list_library_files(folder, option)
    for file in weights:
        content = _read_file(file, option)
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        require_plain_tensors(tensors, file, option)
        if file.suffix == ".safetensors" and not is_safetensors(file):
            name = file.with_suffix(".bin").name.replace("model", "pytorch_model", int(file.stem == "model"))
            raise UserError(f"`{option}`: {file} is a file of PyTorch. Call it {name}.")
    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        require_plain(file)
        try:
            if file.name.endswith(".index.json"):
                list_shards(file, option)
            elif file.suffix == ".json":
                require_json(file, option)
                read_json(file, "Take another copy of the folder.", REPORTS)
            elif file.suffix in (".bin", ".pt", ".pth", ".ckpt") and not weights:
                require_torch_file(file)
        except UserError:
            raise
        except FAULTS as error:
            raise _build_read_error(file, error, option) from None


def _read_file(file: Path, option: str) -> JsonObject:
    """Read one file, or raise an error that says what it is."""
    try:
        require_plain(file)
        return _read_content(file, option)
    except UserError:
        raise
    except FAULTS as error:
        raise _build_read_error(file, error, option) from None


def _read_content(file: Path, option: str) -> JsonObject:
    """Read a file in whichever of the three formats it is, or refuse it."""
    if message := describe_other(file):
        raise UserError(f"`{option}`: {file} {message}")
    if is_safetensors(file):
        return load_file(file)
    if is_torchscript(file):
        return read_torchscript(file)
    require_torch_file(file, crc=True)
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *_list_stand_ins(file)]):
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # the file can be read in spite of it
        warnings.filterwarnings("ignore", "Validating sparse tensor")  # `require_plain_tensors` refuses it
        with open_plain(file) as stream:  # given a path, PyTorch goes by its suffix
            content = torch.load(stream, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}")
    return dict(content)


class _Inert:
    """A stand-in for what a script stored beside its weights, such as a date: nothing of it is created or called."""

    def __new__(cls, *_: object) -> "_Inert":
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def _create_empty_dict(*_: object) -> dict[object, object]:
    """Create an empty dict in the place of a `defaultdict`, whatever its factory."""
    return {}


def _list_stand_ins(file: Path) -> list[tuple[Callable[..., object], str]]:
    """List stand-ins for the harmless types that a PyTorch archive names."""
    if not zipfile.is_zipfile(file):
        return []
    with open_plain(file) as stream:
        type_names = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    harmless = [name for name in type_names if HARMLESS.fullmatch(name)]
    return [(_create_empty_dict if name == "collections.defaultdict" else _Inert, name) for name in harmless]


def _build_read_error(file: Path, error: Exception, option: str) -> UserError:
    """Build the error for a file that could not be read, with what the file is as far as its bytes tell."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    if match and isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"`{option}`: {file} is a pickle that wants to call {match[1]}; nothing in it was run. "
            f"{_suggest_remedy(match[1])}"
        )
    if message := describe_unreadable(file):
        return UserError(f"`{option}`: {file} {message}")
    if isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return UserError(f"`{option}`: {file} is cut short ({format_reason(error)}). {AGAIN} again.")
    return UserError(
        f"`{option}`: {file} is not a safetensors file or a plain PyTorch state dict ({format_reason(error)}). "
        "Give one that is."
    )


def _suggest_remedy(name: str) -> str:
    """Suggest what to give instead of a pickle that calls `name`."""
    if name.startswith(("torch.nn.", "timm.", "transformers.", "torchvision.", "models.", "ultralytics.")):
        return "It holds a whole model as Python objects. Give the file of its `state_dict()`, or a safetensors file."
    if name.startswith("numpy"):
        return "It holds arrays of NumPy. Give a PyTorch state dict of tensors, or a safetensors file."
    return "Give a safetensors file or a plain PyTorch state dict."


def format_reason(error: BaseException) -> str:
    """Format the reason why a file was not read on one line, without PyTorch's advice to run what is in it.

    >>> format_reason(pickle.UnpicklingError("Weights only load failed. Re-running `torch.load` with ..."))
    'what its pickle holds is damaged, or no tensors'
    """
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) or re.search(r"weights_only|torch\.load|Weights only", text):
        return "what its pickle holds is damaged, or no tensors"
    return f"{text.partition('. ')[0]:.200}" or type(error).__name__
