"""peft's other tuners, one by one: where they start, what they move, that a file and folding keep what they learned."""

import io
import warnings

import pytest
import torch
from backbone_cases import IMAGE, squeezenet, tiny
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.finetune.merge import merge_adapters
from semcorr.models.finetune.peft_tuners import REFUSED, list_tuners, peft_tuner
from semcorr.models.finetune.state import checkpoint_keys, keep_frozen_in_eval

# Options that fit layers of 48 and 144 channels, and how far from the base's features each tuner starts.
VERIFIED = {
    "beft": ({}, 0),
    "boft": ({}, 0),
    "c3a": ({"block_size": 16}, 0),
    "deft": ({}, 1e-5),
    "delora": ({}, 0),
    "fourierft": ({}, 0),
    "glora": ({}, 0),
    "gralora": ({}, 0),
    "hira": ({}, 0),
    "hra": ({}, 1e-5),
    "ia3": ({}, 0),
    "lily": ({}, 0),
    "ln_tuning": ({}, 0),
    "loha": ({}, 0),
    "lokr": ({}, 0),
    "miss": ({"r": 8}, 0),
    "oft": ({"oft_block_size": 16}, 0),
    "osf": ({}, 1e-5),
    "peanut": ({}, 0),
    "pvera": ({}, 0),
    "randlora": ({}, 0),
    "road": ({"group_size": 16}, 0),
    "shira": ({}, 0),
    "supertuning": ({}, 0),
    "tinylora": ({}, 0),
    "unilora": ({}, 1e-2),
    "vblora": ({"vector_length": 16, "num_vectors": 16}, 1e-2),
    "vera": ({}, 0),
    "waveft": ({}, 0),
}
UNFOLDED = {"lily"}  # peft has no way to fold it


def tuned(tuner: str, seed: int = 0) -> nn.Module:
    backbone = tiny()
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # boft: its kernel is not compiled
        peft_tuner(backbone, tuner, blocks=2, **VERIFIED[tuner][0])
    return backbone


def features(backbone: nn.Module) -> Tensor:
    with torch.no_grad():
        return backbone(IMAGE).values


def two_steps(backbone: nn.Module) -> None:
    backbone.train()
    keep_frozen_in_eval(backbone)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        values = backbone(IMAGE).values
        (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
        optimizer.step()
    backbone.eval()


def test_every_tuner_of_peft_is_either_verified_or_refused_with_a_reason():
    layered = {kind.value.lower() for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    everything = layered | {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}

    assert set(list_tuners()) == set(VERIFIED)
    assert set(VERIFIED) | set(REFUSED) == everything
    assert not set(VERIFIED) & set(REFUSED)


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # PyTorch's, for shira
@pytest.mark.parametrize("tuner", VERIFIED)
def test_a_tuner_starts_at_the_base_moves_nothing_of_it_and_survives_a_file_and_folding(tuner):
    plain = tiny()
    own = {f".{name}" for name in plain.state_dict()}
    backbone = tuned(tuner)
    start, before = VERIFIED[tuner][1], {key: value.clone() for key, value in backbone.state_dict().items()}
    assert_close(features(backbone), features(plain), atol=start, rtol=0)

    two_steps(backbone)

    learned = features(backbone)
    names = checkpoint_keys(backbone, {name for name, _ in plain.named_buffers()})
    assert not torch.allclose(learned, features(plain), atol=1e-5)
    for key, value in backbone.state_dict().items():
        if f".{key.replace('.base_layer', '')}" in own:
            assert torch.equal(value, plain.state_dict()[key.replace(".base_layer", "")]), key
    moved = {key for key in names if not torch.equal(before[key], backbone.state_dict()[key])}
    assert moved
    assert all(".blocks.2." in n or ".blocks.3." in n for n, p in backbone.named_parameters() if p.requires_grad)

    file = io.BytesIO()
    torch.save({key: backbone.state_dict()[key] for key in names}, file)
    file.seek(0)
    new = tuned(tuner, seed=1)
    assert not new.load_state_dict(torch.load(file, weights_only=True), strict=False).unexpected_keys
    assert torch.equal(features(new), learned)

    if tuner in UNFOLDED:
        with pytest.raises(UserError, match=f"peft cannot do it for {tuner}"):
            merge_adapters(backbone)
        assert torch.equal(features(backbone), learned)
    else:
        merge_adapters(backbone)
        assert backbone.state_dict().keys() == plain.state_dict().keys()
        assert_close(features(backbone), learned, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tuner", REFUSED)
def test_a_tuner_that_is_not_for_this_is_refused_with_the_reason_and_what_there_is(tuner):
    with pytest.raises(UserError) as error:
        peft_tuner(tiny(), tuner)
    assert f"finetune.tuner={tuner} is not for this: {REFUSED[tuner]}. There are beft, boft" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "lohaa"}, "`finetune.tuner`: peft has no tuner 'lohaa' that works here. There are beft, boft"),
        ({"tuner": "loha", "rank": 4}, "`finetune.rank` is not an option of loha. It has alpha, "),
        ({"tuner": "loha", "target_modules": "qkv"}, "`finetune.target_modules` is not an option of loha."),
        ({"tuner": "road", "group_size": 10}, "peft cannot put road into vit_tiny_patch16_224 (The out_features"),
    ],
)
def test_what_peft_does_not_know_is_refused_with_what_it_does(options, message):
    with pytest.raises(UserError) as error:
        peft_tuner(tiny(), **options)
    assert message in str(error.value)


def test_a_tuner_without_convolutions_says_so():
    with pytest.raises(UserError, match="peft cannot put vera into squeezenet1_1"):
        peft_tuner(squeezenet(), "vera")


def test_ln_tuning_moves_the_norms_of_the_blocks():
    backbone = tuned("ln_tuning")

    moving = {name.split(".ln_tuning")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert moving == {f"model.blocks.{i}.norm{j}" for i in (2, 3) for j in (1, 2)}
