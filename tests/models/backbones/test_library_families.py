"""One network of each family of timm and transformers: it is a backbone, or refused in one sentence."""

from functools import cache

import pytest
import timm
import torch
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.utils import logging

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.transformers_model import TransformersModel

pytestmark = pytest.mark.slow

SMALLEST = ("test_", "atto", "femto", "pico", "nano", "xxtiny", "_xxs", "tiny", "_xs", "_s0", "mini", "small", "_b0")
SMALLEST += ("_s", "18", "26", "mobile", "base")
SIZES = (224, 256, 448)  # the first that the patch divides
# Families whose smallest network was a backbone when this test was written; losing one of them is a mistake.
TIMM = ("beit", "hiera", "hieradet_sam2", "naflexvit", "eva", "vision_transformer", "resnet", "convnext")
PARTS = 16
SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
SHAPE |= {"patch_size": 8, "image_size": 64}
HUGGING_FACE = (
    "dinov2",
    "ijepa",
    "tipsv2_vision_model",
    "radio",
    "sapiens2",
    "sam_vision_model",
    "siglip_vision_model",
)


def smallest(names: list[str]) -> str:
    return next((name for part in SMALLEST for name in names if part in name), names[0])


def require_backbone(backbone: Backbone, image: torch.Tensor) -> None:
    depth = len(backbone.blocks)
    with torch.no_grad():
        values = backbone(image).values
        for cut in {0, depth // 2, depth}:
            assert torch.equal(backbone.suffix(backbone.prefix(image, cut), cut).values, values)
    cells = backbone.size // backbone.stride
    assert values.shape == (len(image), backbone.channels, cells, cells)


def require_sentence(error: UserError) -> None:
    assert "\n" not in str(error)
    assert "`backbone." in str(error) or "hoose another" in str(error) or "hange" in str(error)


@pytest.mark.parametrize("family", [name for name in timm.list_modules() if timm.list_models(module=name)])
def test_a_family_of_timm_is_a_backbone_or_refused_with_a_message(family):
    name, backbone, errors = smallest(timm.list_models(module=family)), None, list[UserError]()
    torch.manual_seed(0)
    for size in SIZES:
        try:
            backbone = TimmModel(name, size=size, pretrained=False).eval()
            break
        except UserError as error:
            errors.append(error)
    if backbone is None:
        assert family not in TIMM
        require_sentence(errors[0])
    else:
        require_backbone(backbone, torch.rand(2, 3, backbone.size, backbone.size))


@cache
def encoders() -> list[str]:
    """List the families of the library whose config, or that of their vision part, speaks of images."""
    logging.set_verbosity_error()
    kinds: dict[type, str] = {}
    for name in CONFIG_MAPPING:
        try:
            config = AutoConfig.for_model(name)
        except Exception:  # a config that has no defaults
            continue
        config = getattr(config, "vision_config", None) or config
        if not hasattr(config, "to_dict"):
            continue
        if {"image_size", "num_channels", "patch_size", "depths"} & set(config.to_dict()):
            kinds[type(config)] = config.model_type
    return sorted(set(kinds.values()) & set(CONFIG_MAPPING))


@pytest.mark.filterwarnings("ignore")  # of the library, on networks that are built here alone
@pytest.mark.parametrize("part", range(PARTS))  # the names take seconds, and whoever collects tests has no need of them
def test_a_family_of_transformers_is_a_backbone_or_refused_with_a_message(part):
    families = encoders()[part::PARTS]
    assert families
    for family in families:
        try:
            require_backbone_or_sentence(family)
        except Exception as error:
            error.add_note(f"family {family}")
            raise


def require_backbone_or_sentence(family: str) -> None:
    known = AutoConfig.for_model(family).to_dict()
    shape = {key: value for key, value in SHAPE.items() if isinstance(known.get(key), int)}
    torch.manual_seed(0)
    try:
        try:
            backbone = TransformersModel("any", size=64, pretrained=False, model_type=family, **shape).eval()
        except UserError:
            backbone = TransformersModel("any", size=448, pretrained=False, model_type=family, **shape).eval()
    except UserError as error:
        assert family not in HUGGING_FACE
        require_sentence(error)
    else:
        require_backbone(backbone, torch.rand(2, 3, backbone.size, backbone.size))
