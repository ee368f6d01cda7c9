"""Image encoders of the transformers library, loaded from the hub, a folder or a file, or built from a config."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.hub import download_error, require_hub
from semcorr.models.weights.loading import require_finite_weights
from semcorr.models.weights.networks import recognise_weights
from semcorr.models.weights.paths import require_json

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNUSED = ("pooler.", "head.", "mask_token", "embeddings.mask_token")  # of weights that dense features do not use


def list_config_targets(_: object) -> list[object]:
    """List the classes that take the options of a config: none, since `load_image_encoder` checks them itself."""
    return []


def load_image_encoder(
    name: str,
    pretrained: bool,
    weights: str | None,
    model_type: str | None,
    options: JsonMapping,
    medium: str = "image",
) -> tuple[PreTrainedModel, list[str], str]:
    """Load an image or video encoder with its weights, or build one with random weights.

    Args:
        name: Name on the Hugging Face hub.
        pretrained: Download the weights, where `weights` is None; otherwise they are random.
        weights: Local folder or file of weights to read; None reads none.
        model_type: Family of the library to build without a config file; None reads that file.
        options: Options of the config of `model_type`; empty without it.
        medium: `image` or `video`.

    Returns:
        The encoder, the names of its parameters that were not found and are random, and a sentence on which network the
        file is of, empty where that is not known.

    Raises:
        UserError: The encoder cannot be built or downloaded, or the weights do not fit or are not finite.
    """
    state = None if weights is None else read_weights(weights)
    config = _find_config(name, pretrained, weights, model_type, options)
    config = getattr(config, "vision_config", config)
    family = _find_family(name, config, medium)
    if weights is None and not pretrained:
        return _build_random(name, config), [], ""
    source: JsonObject = {"pretrained_model_name_or_path": name}
    if state is not None:
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    try:
        if weights is None:
            require_hub(name)
        with _silence_library():  # float32, whatever the file's precision
            model, info = family.from_pretrained(**source, config=config, output_loading_info=True, dtype=torch.float32)
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise download_error(error, name) from error
        raise UserError(f"`backbone.weights`: {weights} does not fit this backbone. {_first_line(error)}") from error
    require_finite_weights(model.state_dict(), f"`backbone.weights`: {weights or name}")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED))
    return model, missing, recognise_weights(state or {}, model.state_dict())


def _find_family(name: str, config: PreTrainedConfig, medium: str) -> type[Any]:
    """Return the library's class of an image or a video encoder."""
    family = MODEL_MAPPING.get(type(config), None)
    inputs = {"image": "pixel_values", "video": "pixel_values_videos"}
    try:
        if isinstance(family, type) and getattr(family, "main_input_name", "") == inputs[medium]:
            return family
    except ImportError as error:  # a family of another package
        raise UserError(f"{name} cannot be built here: {_first_line(error)}") from error
    raise UserError(f"{name} has no {medium} encoder that the transformers library builds. Choose another backbone.")


def _build_random(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a network with random weights."""
    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except (ImportError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"The transformers library cannot build {name} ({_first_line(error)}). Change its options, or choose "
            "another backbone."
        ) from error


def require_complete(model: nn.Module, missing_keys: Sequence[str], source: str, diagnosis: str = "") -> None:
    """Refuse a network with parameters that its weights lack.

    Args:
        model: Network as it is used, without parts that were cut off.
        missing_keys: Names of the parameters that were not found, also in parts that were cut off.
        source: Name or path of the weights, for the message.
        diagnosis: Sentence on which network the file is of.
    """
    model_state = model.state_dict()
    missing = [key for key in missing_keys if key in model_state]
    if missing:
        raise UserError(
            f"`backbone.weights`: {source} does not fit this backbone. {len(missing)} missing: "
            f"{', '.join(missing[:3])}. {diagnosis or 'Give weights of the same model.'}"
        )


def pixel_statistics(
    name: str, pretrained: bool, weights: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of RGB in [0, 1]: as given, as published, or ImageNet's for random weights.

    Args:
        name: Name on the Hugging Face hub, where they are looked up if `weights` is None.
        pretrained: Whether the weights are those published by name.
        weights: Local folder or file of weights, with a preprocessor_config.json beside it; None if there is none.
        mean: Mean of red, green and blue; None looks it up.
        std: Standard deviation of red, green and blue; None looks it up. Both are given, or neither is.

    Raises:
        UserError: Only one of both is given, one has not three numbers, or they are not published.
    """
    for option, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise UserError(f"`backbone.{option}` must have three numbers, for red, green and blue, got {list(values)}")
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    if mean is not None or std is not None:
        present, missing = ("mean", "std") if std is None else ("std", "mean")
        raise UserError(f"`backbone.{present}` needs backbone.{missing} as well. Give both, or none.")
    if weights is None and not pretrained:
        return IMAGENET
    source = name if weights is None else str(_weights_folder(weights))
    if (config_file := Path(source) / "preprocessor_config.json").exists():
        require_json(config_file, "backbone.weights")
        read_mapping(config_file, "Take another copy of the folder.")
    try:
        with _silence_library():
            processor = ImageProcessingMixin.get_image_processor_dict(source)[0]
        return tuple(processor["image_mean"]), tuple(processor["image_std"])
    except (OSError, KeyError) as error:
        raise UserError(
            f"`backbone.mean`, `backbone.std`: {source} has no preprocessor_config.json that says what images are "
            f"normalised by. Give both; ImageNet's are {list(IMAGENET[0])} and {list(IMAGENET[1])}."
        ) from error


def _find_config(
    name: str, pretrained: bool, weights: str | None, model_type: str | None, options: JsonMapping
) -> PreTrainedConfig:
    """Return the config of `model_type` with its options, the one beside the weights, or the published one."""
    if model_type is not None:
        return _build_config(model_type, options)
    if options:
        raise UserError(f"`backbone.{next(iter(options))}` needs `backbone.model_type`, whose config it belongs to")
    config_file = _weights_folder(weights) / "config.json" if weights is not None else None
    if config_file is not None and config_file.exists():
        return _read_config(config_file)
    try:
        require_hub(name)
        with _silence_library():
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if weights is None and pretrained:
            raise download_error(error, name) from error
        raise UserError(
            f"How {name} is built could not be looked up ({_first_line(error)}). Put its config.json beside "
            "`backbone.weights`, or give `backbone.model_type` (dinov2, dinov3_vit, convnext, ...) and its options."
        ) from error


def _read_config(path: Path) -> PreTrainedConfig:
    """Read a config file, or raise an error that says what is wrong with it."""
    require_json(path, "backbone.weights")
    read_mapping(path, "Take another copy of the folder.")
    try:
        return AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"`backbone.weights`: {path} describes no network that the transformers library builds "
            f"({_first_line(error)}). Take another copy of the folder."
        ) from error


def _build_config(model_type: str, options: JsonMapping) -> PreTrainedConfig:
    """Build the config of a family with its options, and refuse those that it does not know."""
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError:
        raise UserError(f"`backbone.model_type`: the transformers library has no {model_type!r}") from None
    known = default.to_dict()
    unknown = [key for key in options if key not in known]
    if unknown:  # the library would store them, and not use them
        raise UserError(f"`backbone.{unknown[0]}` is nothing that {model_type} takes; it takes {', '.join(known)}")
    try:
        return AutoConfig.for_model(model_type, **options)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"The transformers library has no {model_type} with these options ({_first_line(error)}). Change one of "
            f"backbone.{', backbone.'.join(options)}."
        ) from error


def _weights_folder(weights: str) -> Path:
    """Return the folder of weights that are given as a folder or as a file in it."""
    path = Path(weights)
    return path if path.is_dir() else path.parent


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _silence_library() -> Iterator[None]:
    """Hide the library's table of keys of parts that are not built, and its progress bar for a load of a second."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
