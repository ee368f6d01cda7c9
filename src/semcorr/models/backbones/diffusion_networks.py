"""The networks Stable Diffusion is made of: from the hub, from a directory, or random."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

from safetensors import SafetensorError

from semcorr.core.errors import UserError
from semcorr.models.backbones.checkpoints import format_reason, require_weights_folder
from semcorr.models.backbones.file_kinds import describe_other
from semcorr.models.backbones.text_encoder import TextEncoder, build_byte_tokenizer
from semcorr.models.backbones.weight_paths import list_library_files
from semcorr.models.backbones.weights import require_finite_weights

# What the two libraries raise where a file is absent, or none of theirs.
BROKEN = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError, UnpicklingError)
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer")  # diffusers' layout, as far as it is read
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UNET = {"block_out_channels": (320, 640, 1280, 1280)}  # the rest is diffusers' default
# By the end of their names: the published configurations of the UNet and the text encoder.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stable-diffusion-2-1": (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
        | {"hidden_act": "gelu"},
    ),
    "stable-diffusion-v1-5": (
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
}


class DiffusionNetworks(NamedTuple):
    """What a pass through Stable Diffusion needs."""

    unet: Any  # diffusers' UNet2DConditionModel
    vae: Any  # and AutoencoderKL
    text: Callable[[], TextEncoder]  # large, and needed only while a prompt is read or learned


def load_diffusion_networks(name: str, pretrained: bool, weights: str | None) -> DiffusionNetworks:
    """From the directory `weights`; else by name through the hub; else random."""
    diffusers = require_diffusers()
    if weights is None and not pretrained:
        return build_random_networks(name)
    if weights is not None:
        _check_layout(Path(weights))
    fetch = partial(_fetch, name if weights is None else weights, weights is not None)
    return DiffusionNetworks(
        fetch(diffusers.UNet2DConditionModel, "unet"),
        fetch(diffusers.AutoencoderKL, "vae"),
        partial(_load_text, name if weights is None else weights, weights is not None),
    )


def build_random_networks(name: str) -> DiffusionNetworks:
    """The architecture published under `name`, with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    diffusers, key = require_diffusers(), name.rpartition("/")[2]
    if key not in PUBLISHED:
        raise UserError(
            f"Random weights need a known architecture: `backbone.name` must end in {' or '.join(PUBLISHED)}, "
            f"got {name}. Give one of these, or weights."
        )
    unet, text = PUBLISHED[key]
    encoder = TextEncoder(CLIPTextModel(CLIPTextConfig(**text)), build_byte_tokenizer(CLIPTextConfig().vocab_size))
    return DiffusionNetworks(
        diffusers.UNet2DConditionModel(**UNET, **unet), diffusers.AutoencoderKL(**VAE), partial(reuse_encoder, encoder)
    )


def reuse_encoder(encoder: TextEncoder) -> TextEncoder:
    """An encoder that is there already."""
    return encoder


def require_diffusers() -> Any:
    """The library, or how to get it: it is an extra."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"Stable Diffusion needs the package diffusers ({error}): pip install semcorr[sd]. "
            "Or use a backbone that does without, such as backbone=dinov2."
        ) from None
    return diffusers


def _load_text(source: str, local: bool) -> TextEncoder:
    from transformers import CLIPTextModel, CLIPTokenizer

    model = _fetch(source, local, CLIPTextModel, "text_encoder").float()  # transformers keeps a file's half precision
    return TextEncoder(model, _fetch(source, local, CLIPTokenizer, "tokenizer", info=False))


def _fetch(source: str, local: bool, kind: Any, folder: str, info: bool = True) -> Any:
    """One part, with every one of its weights found."""
    options = {"output_loading_info": True} if info else {}
    try:
        part = kind.from_pretrained(source, subfolder=folder, local_files_only=local, **options)
    except BROKEN as error:
        raise _told(error, source, local, folder) from error
    if not info:
        return part
    part, report = part
    odd = [key for which in ("missing_keys", "mismatched_keys") for key in sorted(map(str, report.get(which) or ()))]
    if odd:
        raise UserError(
            f"`backbone.weights`: {folder} of {source} does not fit its own configuration: {len(odd)} weights are "
            f"missing or of another shape, {', '.join(odd[:3])}. Give the whole of a model in diffusers' layout."
        )
    require_finite_weights(part.state_dict(), f"`backbone.weights`: {folder} of {source}")
    return part


def _told(error: Exception, source: str, local: bool, folder: str) -> UserError:
    """The failure in a sentence, with the ways out."""
    root = error if local else _causes(error)[-1]  # the libraries say "no config.json" where there is no network
    reason = format_reason(root)
    if local:
        return UserError(f"`backbone.weights`: {folder} in {source} cannot be read ({reason}). Give one that is whole.")
    if any(type(cause).__name__ == "GatedRepoError" for cause in _causes(error)):
        return UserError(
            f"{source} is gated: ask for access at https://huggingface.co/{source}, then log in with `hf auth login` "
            "and run again; or give backbone.weights=DIRECTORY with a local copy, or another backbone.name."
        )
    return UserError(
        f"The weights of {source} could not be downloaded ({reason}). Three ways out: connect to the internet and run "
        "again (backbone.name=ACCOUNT/MODEL where the account has moved), or download them elsewhere and set "
        "HF_HUB_CACHE to that cache; backbone.weights=DIRECTORY with a local copy in diffusers' layout; "
        "backbone.pretrained=false for random weights."
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _check_layout(directory: Path) -> None:
    if not directory.exists():
        raise UserError(f"`backbone.weights`: {directory} does not exist. Give a directory in diffusers' layout.")
    if directory.is_file():
        told = describe_other(directory) or (
            "is a file, and this backbone takes a directory. Make one of it by diffusers' "
            "`StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIRECTORY)`."
        )
        raise UserError(f"`backbone.weights`: {directory} {told}")
    absent = [folder for folder in FOLDERS if not (directory / folder).is_dir()]
    if absent and all((directory.parent / folder).is_dir() for folder in FOLDERS):
        raise UserError(
            f"`backbone.weights`: {directory} is a part of Stable Diffusion. Give the whole: {directory.parent}."
        )
    if absent:
        raise UserError(
            f"`backbone.weights`: {directory} has no folder {', '.join(absent)}. Give a directory in diffusers' "
            f"layout: {', '.join(FOLDERS)}."
        )
    for folder in FOLDERS:
        try:
            require_weights_folder(directory / folder, "backbone.weights")
            if folder != "tokenizer":
                _require_weights(directory / folder)
        except UserError as error:
            told = str(error).removeprefix("`backbone.weights`: ")
            raise UserError(f"`backbone.weights`: {folder} in {directory} cannot be read: {told}") from None


def _require_weights(folder: Path) -> None:
    if list_library_files(folder, "backbone.weights"):
        return
    variant = next(iter(sorted(folder.glob("*model.*.safetensors"))), None)  # such as of float16
    plain = f"{variant.name.partition('.')[0]}.safetensors" if variant else ""
    remedy = f"Call {variant.name} in it {plain}" if variant else "Take another copy of the folder, with its weights"
    raise UserError(f"`backbone.weights`: {folder} has no weights under the name that is read. {remedy}.")
