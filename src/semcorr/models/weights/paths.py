"""The files that a path stands for: the path itself, the weights in a folder, or the shards of an index."""

import re
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import read_mapping
from semcorr.models.weights.file_kinds import describe_placed
from semcorr.models.weights.networks import MERGE

LIBRARY_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")


def list_weight_files(path: Path, option: str) -> list[Path]:
    """List the files that a path stands for: the file itself, or those of a folder or an index."""
    if path.is_dir():
        return _list_folder_weights(path, option)
    if path.name.endswith(".index.json"):
        return list_shards(path, option)
    if SHARD.search(path.name):
        raise UserError(
            f"`{option}`: {path} is one part of several. Give the folder that has all of them and their .index.json: "
            f"{path.parent}."
        )
    return [path]


def _list_folder_weights(folder: Path, option: str) -> list[Path]:
    """List the file or the shards in a folder of Hugging Face's layout."""
    if (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file():
        raise UserError(
            f"`{option}`: {folder} is the directory of a training run. Give it as checkpoint={folder}, or make a file "
            "of its backbone by `python -m semcorr.export`."
        )
    if (folder / "unet").is_dir():
        raise UserError(
            f"`{option}`: {folder} is a folder of Stable Diffusion. Take backbone=sd, or another that is built on it."
        )
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            return list_shards(index, option)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"`{option}`: {folder} is of an adapter (peft), which holds only what was added. {MERGE}")
    others = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".pth", ".pt", ".safetensors", ".bin")]
    remedy = f"Give one of its files, such as {folder / others[0]}" if others else "Give a folder that has"
    raise UserError(
        f"`{option}`: {folder} has neither model.safetensors nor pytorch_model.bin. {remedy}, or a weights file."
    )


def list_shards(index: Path, option: str) -> list[Path]:
    """List the files that an index names, and require that all of them exist."""
    remedy = "Take another copy of the folder."
    require_json(index, option)
    weight_map = read_mapping(index, remedy).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"`{option}`: {index} has no `weight_map`, from weights to files. {remedy}")
    for key, name in weight_map.items():
        require_file_name(name, f"`{option}`: {index}, weight {quote_value(key)},")
    files = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    if missing := [file for file in files if not file.exists()]:
        raise UserError(f"`{option}`: {index} names {missing[0].name}, which is not beside it. {remedy}")
    return files


def require_json(file: Path, option: str) -> None:
    """Refuse a Git LFS pointer or a web page in the place of a JSON file."""
    if message := describe_placed(file):
        raise UserError(f"`{option}`: {file} {message}")


def list_library_files(folder: Path, option: str) -> list[Path]:
    """List those weights in a folder that a library takes; none for a tokenizer."""
    for name in LIBRARY_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return list_shards(index, option)
    return []
