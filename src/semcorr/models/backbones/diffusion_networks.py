"""The networks of Stable Diffusion: from the hub or a directory, or with random weights; and the noise they see."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.models.backbones.text_encoder import TextEncoder, build_byte_tokenizer
from semcorr.models.weights.checkpoints import format_reason, read_weights, require_weights_folder
from semcorr.models.weights.file_kinds import describe_other
from semcorr.models.weights.hub import require_hub
from semcorr.models.weights.loading import load_weights, require_finite_weights
from semcorr.models.weights.paths import list_library_files

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
import torch
from jaxtyping import Float
from torch import Tensor

# Errors that the two libraries raise where a file is missing, or not in their format.
BROKEN = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError, UnpicklingError)
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer")  # the parts of diffusers' layout that are read
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UNET = {"block_out_channels": (320, 640, 1280, 1280)}  # the rest is diffusers' default
# The published configurations of the UNet and the text encoder, by the end of a model's name.
PUBLISHED: dict[str, tuple[JsonObject, JsonObject]] = {
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


@runtime_checkable
class Pretrained(Protocol):
    """A class of diffusers or transformers that is loaded from a folder or the hub."""

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load an instance, or a pair of it and a report if `output_loading_info` is set."""


T = TypeVar("T", bound=Pretrained)


class DiffusionNetworks(NamedTuple):
    """The networks that a pass through Stable Diffusion needs."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text: Callable[[], TextEncoder]  # large, and needed only while a prompt is read or learned


def load_diffusion_networks(name: str, pretrained: bool, weights: str | None) -> DiffusionNetworks:
    """Load the networks from the directory `weights`, else by name from the hub; else build random ones.

    Args:
        name: Name on the Hugging Face hub of a model in diffusers' layout.
        pretrained: Download the weights, where `weights` is None; otherwise they are random.
        weights: Local directory with `unet`, `vae`, `text_encoder` and `tokenizer`; None reads none.

    Raises:
        UserError: diffusers is not installed, a part cannot be loaded, or `name` is of no known architecture.
    """
    diffusers = require_diffusers()
    if weights is None and not pretrained:
        return build_random_networks(name)
    if weights is not None:
        _require_layout(Path(weights))
    load_part = partial(_load_part, name if weights is None else weights, weights is not None)
    return DiffusionNetworks(
        load_part(diffusers.UNet2DConditionModel, "unet"),
        load_part(diffusers.AutoencoderKL, "vae"),
        partial(_load_text_encoder, name if weights is None else weights, weights is not None),
    )


def replace_unet(unet: nn.Module, name: str | None, weights: str | None) -> None:
    """Load weights of a UNet that is published alone: from a file, else from the hub.

    Args:
        unet: UNet to load the weights into.
        name: ACCOUNT/MODEL/FILE on the Hugging Face hub, which is read where `weights` is None.
        weights: Local file; None downloads it.

    Raises:
        UserError: The name is not of this form, or the file cannot be downloaded, read or loaded.
    """
    path = weights
    if path is None:
        repository, _, file = (name or "").rpartition("/")
        if "/" not in repository:
            raise UserError(f"`backbone.unet_name` must be ACCOUNT/MODEL/FILE on the Hugging Face hub, got {name!r}")
        try:
            require_hub(repository)
            path = hf_hub_download(repository, file)
        except (OSError, RuntimeError) as error:
            raise _build_unet_error(error, repository, file) from error
    load_weights(unet, read_weights(path, "backbone.unet_weights"), path, option="backbone.unet_weights")


def _build_unet_error(error: Exception, repository: str, file: str) -> UserError:
    """Build the error for a UNet that could not be downloaded, with the remedies."""
    return UserError(
        f"{file} of {repository} could not be downloaded ({format_reason(_list_causes(error)[-1])}). Three ways out: "
        "connect to the internet and run again, or download it elsewhere and set HF_HUB_CACHE to that cache; "
        "backbone.unet_weights=FILE with a local copy; backbone.pretrained=false for random weights."
    )


def build_random_networks(name: str) -> DiffusionNetworks:
    """Build the architecture published under `name`, with random weights.

    Raises:
        UserError: The end of the name is none of `PUBLISHED`.
    """
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
    """Return an encoder that is already loaded."""
    return encoder


def require_diffusers() -> ModuleType:
    """Import diffusers, an optional dependency.

    Raises:
        UserError: It is not installed; the message says how to install it.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"Stable Diffusion needs the package diffusers ({error}): pip install 'semcorr[sd]'. "
            "Or use a backbone that does without, such as backbone=dinov2."
        ) from None
    return diffusers


def _load_text_encoder(source: str, local: bool) -> TextEncoder:
    """Load the text encoder and its tokenizer."""
    from transformers import CLIPTextModel, CLIPTokenizer

    model = _load_part(source, local, CLIPTextModel, "text_encoder").float()  # the file may be in half precision
    return TextEncoder(model, _load_part(source, local, CLIPTokenizer, "tokenizer", info=False))


def _load_part(source: str, local: bool, kind: type[T], folder: str, info: bool = True) -> T:
    """Load one part, and require that all of its weights are found."""
    options = {"output_loading_info": True} if info else {}
    try:
        if not local:
            require_hub(source)
        part = kind.from_pretrained(source, subfolder=folder, local_files_only=local, **options)
    except BROKEN as error:
        raise _build_load_error(error, source, local, folder) from error
    if not info:
        return part
    part, report = part
    unfit = [key for issue in ("missing_keys", "mismatched_keys") for key in sorted(map(str, report.get(issue) or ()))]
    if unfit:
        raise UserError(
            f"`backbone.weights`: {folder} of {source} does not fit its own configuration: {len(unfit)} weights are "
            f"missing or of another shape, {', '.join(unfit[:3])}. Give the whole of a model in diffusers' layout."
        )
    require_finite_weights(part.state_dict(), f"`backbone.weights`: {folder} of {source}")
    return part


def _build_load_error(error: Exception, source: str, local: bool, folder: str) -> UserError:
    """Build the error for a part that could not be loaded, with the remedies."""
    root = error if local else _list_causes(error)[-1]  # the libraries say "no config.json" where there is no network
    reason = format_reason(root)
    if local:
        return UserError(f"`backbone.weights`: {folder} in {source} cannot be read ({reason}). Give one that is whole.")
    if any(type(cause).__name__ == "GatedRepoError" for cause in _list_causes(error)):
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


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """List an error, what caused it, and so on."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _require_layout(directory: Path) -> None:
    """Refuse a directory that is not in diffusers' layout, or a part of which could not be read."""
    if not directory.exists():
        raise UserError(f"`backbone.weights`: {directory} does not exist. Give a directory in diffusers' layout.")
    if directory.is_file():
        message = describe_other(directory) or (
            "is a file, and this backbone takes a directory. Make one of it by diffusers' "
            "`StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIRECTORY)`."
        )
        raise UserError(f"`backbone.weights`: {directory} {message}")
    missing = [folder for folder in FOLDERS if not (directory / folder).is_dir()]
    if missing and all((directory.parent / folder).is_dir() for folder in FOLDERS):
        raise UserError(
            f"`backbone.weights`: {directory} is a part of Stable Diffusion. Give the whole: {directory.parent}."
        )
    if missing:
        raise UserError(
            f"`backbone.weights`: {directory} has no folder {', '.join(missing)}. Give a directory in diffusers' "
            f"layout: {', '.join(FOLDERS)}."
        )
    for folder in FOLDERS:
        try:
            require_weights_folder(directory / folder, "backbone.weights")
            if folder != "tokenizer":
                _require_weights(directory / folder)
        except UserError as error:
            message = str(error).removeprefix("`backbone.weights`: ")
            raise UserError(f"`backbone.weights`: {folder} in {directory} cannot be read: {message}") from None


def _require_weights(folder: Path) -> None:
    """Refuse a folder without weights under a name that diffusers or transformers reads."""
    if list_library_files(folder, "backbone.weights"):
        return
    variant = next(iter(sorted(folder.glob("*model.*.safetensors"))), None)  # such as the one in float16
    plain = f"{variant.name.partition('.')[0]}.safetensors" if variant else ""
    remedy = f"Call {variant.name} in it {plain}" if variant else "Take another copy of the folder, with its weights"
    raise UserError(f"`backbone.weights`: {folder} has no weights under the name that is read. {remedy}.")


TIMESTEPS, BETAS = 1000, (0.00085, 0.012)  # the schedule of every Stable Diffusion 1 and 2


def add_noise(
    latent: Float[Tensor, "b c h w"], timestep: int, ensemble: int, seed: int
) -> Float[Tensor, "b {ensemble} c h w"]:
    """Add noises, which depend on `seed` and the latent's shape alone, to each latent.

    Args:
        latent: Latents of images.
        timestep: Timestep of the noise, from 0 to 999; the latent keeps less of itself the larger it is.
        ensemble: Number of noises, which are the same for all latents.
        seed: Seed of the noises.

    >>> latents = torch.zeros(2, 4, 8, 8)
    >>> torch.equal(*add_noise(latents, timestep=261, ensemble=3, seed=0))
    True
    """
    generator = torch.Generator().manual_seed(seed)  # on the CPU, where it is the same everywhere
    noise = torch.randn(ensemble, *latent.shape[1:], generator=generator).to(latent, non_blocking=True)
    signal_scale, noise_scale = noise_scales(timestep)
    return signal_scale * latent[:, None] + noise_scale * noise


def noise_scales(timestep: int) -> tuple[float, float]:
    """Return the factors of a latent and of its noise at a timestep: the roots of alpha bar and of one minus it.

    Alpha bar is the running product of 1 - beta, with betas that are linear in their roots.

    >>> [f"{share:.4f}" for timestep in (0, 261, 999) for share in noise_scales(timestep)]
    ['0.9996', '0.0292', '0.8097', '0.5868', '0.0683', '0.9977']
    """
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS) ** 2
    alpha_bar = (1 - betas).cumprod(dim=0)[timestep]
    return float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)
