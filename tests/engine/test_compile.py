"""compile=BACKEND: the blocks of a backbone through torch.compile, one by one."""

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.engine.build import compile_blocks
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.train import train


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at what it should not
def test_compiled_blocks_give_the_same_features_at_every_cut():
    """Without a C++ compiler: dynamo's eager backend captures the graphs and runs them as they are."""
    backbone = TimmModel("vit_tiny_patch16_224", 32, pretrained=False, depth=2, embed_dim=24, num_heads=2)
    image = torch.rand(1, 3, 32, 32)
    plain = backbone(image).values
    torch._dynamo.utils.counters.clear()

    compile_blocks(backbone, "eager")

    assert torch.equal(backbone(image).values, plain)
    assert torch.equal(backbone.suffix(backbone.prefix(image, 1), 1).values, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.slow
def test_blocks_share_their_code_and_none_is_left_uncompiled(monkeypatch):
    """Frozen and moving, with gradients and without, of one image and of several: more than dynamo's usual eight."""
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 8)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backbone = TimmModel("vit_tiny_patch16_224", 32, pretrained=False, depth=4, embed_dim=24, num_heads=2)
    last_blocks(backbone, 2)

    compile_blocks(backbone, "eager")
    for training in (False, True):
        backbone.train(training)
        for size in (1, 2, 8):
            backbone(torch.rand(size, 3, 32, 32)).values.sum().backward()
            with torch.no_grad():
                backbone(torch.rand(size, 3, 32, 32))
            with torch.inference_mode():
                backbone(torch.rand(size, 3, 32, 32))

    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] == frames["total"] > 8


def test_an_unknown_compiler_is_refused_with_the_known_ones(config, tiny):
    with pytest.raises(UserError, match=r"`compile` must be a backend .*inductor.* or null, got 'fast'"):
        train(config("train", *tiny, "compile=fast"))
