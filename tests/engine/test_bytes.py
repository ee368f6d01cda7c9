"""Bytes are converted where the backbone is called, which sees the same floats as ever, to the last bit."""

import pytest
import torch
from torch import nn

from semcorr.core.types import ImageBatch
from semcorr.engine.build import build_datamodule_and_module, build_training_parts
from semcorr.engine.loss_inputs import batch_features
from semcorr.store.cache import FeatureCache
from semcorr.store.encode import ProcessGroup, encode_images

pytestmark = pytest.mark.integration


def in_floats(view):
    return view._replace(image=view.image.float() / 255)


@pytest.mark.parametrize(
    "line", [["data.batch_size=3"], ["data.all_pairs=3"], ["data.batch_size=2", "pairs=pose_variant"]]
)
def test_features_of_bytes_are_those_of_floats(config, tiny, line):
    cfg = config("train", *tiny, *line)
    module, data = build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))
    batch = next(iter(data.train_dataloader()))
    ends = ("view",) if isinstance(batch, ImageBatch) else ("source", "target")
    assert all(getattr(batch, end).image.dtype == torch.uint8 for end in ends)

    floats = batch._replace(**{end: in_floats(getattr(batch, end)) for end in ends})

    assert torch.equal(batch_features(module, batch).values, batch_features(module, floats).values)


def test_what_is_encoded_is_the_image_in_floats(config, tiny):
    data = build_datamodule_and_module(config("evaluate", *tiny))[1]
    images = data.images_to_evaluate("test", 2)
    cache = FeatureCache(len(images), torch.device("cpu"))

    encode_images(
        cache, images, data, lambda image: {"image": nn.Identity()(image)}, ProcessGroup(0, 1, cache.device, 1)
    )

    for view in data.encoding_loader(images, [[i] for i in range(len(images))]):
        assert view.image.dtype == torch.uint8
        assert torch.equal(cache[view.name[0]]["image"], view.image[0].float() / 255)
