import math

import pytest
import torch
from backbone_cases import tiny
from hydra.utils import instantiate
from repository import SMALL
from tiny_diffusion import parts, tiny_sd, write_parts
from torch.nn.functional import linear
from torch.testing import assert_close

from semcorr.cli.compose import merge_checkpoint_config
from semcorr.core.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.models.backbones.diffusion import FixedPrompt
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.finetune.prompts import conditional_prompt, prompt
from semcorr.models.finetune.state import keep_frozen_in_eval
from semcorr.train import train

pytestmark = pytest.mark.integration

SOURCE, TARGET = torch.rand(2, 2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
DINO = {"dino": "vit_tiny_patch16_224", "dino_size": 32, "pretrained": False, "patch_size": 8}
DINO |= {"embed_dim": 24, "depth": 1, "num_heads": 2}  # 16 cells of 24 channels
CPM = {"words", "position", "gate", "project.weight", "project.bias", "mix.weight", "mix.bias"}


def prompted(tokens=5, **options):
    backbone = tiny_sd(**options)
    torch.manual_seed(1)
    prompt(backbone, tokens)
    return backbone


def conditioned(seed=1, tokens=3, conditional=5, scale=0.5, **options):
    backbone = tiny_sd(**options)
    torch.manual_seed(seed)
    conditional_prompt(backbone, tokens, conditional, scale, **DINO)
    return backbone


def features(backbone, dtype=torch.float):
    source, target = SOURCE.to(dtype), TARGET.to(dtype)
    if backbone.pairwise:
        return torch.cat([m.values for m in backbone.pair(source, target)])
    return backbone(torch.cat((source, target))).values


@pytest.mark.parametrize("text", ["a", "a photo", "seven words are not enough for it"])
def test_words_in_the_place_of_a_texts_embeddings_are_that_text(text):
    encoder = parts().text()
    ids = encoder.tokenizer(text, return_tensors="pt").input_ids

    with torch.no_grad():
        embedded = encoder.model.get_submodule("embeddings")(ids)
        assert_close(encoder.encode(embedded[:, 1:-1]), encoder(text))
        assert (encoder.encode(-embedded[:, 1:-1]) - encoder(text)).abs().max() > 0.01
        assert torch.equal(encoder(text), encoder(text))  # nothing is left behind


def test_as_many_words_as_there_is_room_for_leave_start_and_end():
    encoder = parts().text()

    assert encoder.frame(75).shape == (1, 77)
    assert encoder.frame(75)[0, [0, -1]].tolist() == [512, 513]
    assert encoder.frame(2)[0].tolist() == [512, *[513] * 76]  # padded with the end, as 1.5 is


def test_a_learned_prompt_is_a_fixed_one_until_it_moves():
    backbone, fixed = prompted(), tiny_sd()

    with torch.no_grad():
        fixed.prompt = FixedPrompt(backbone.prompt.text.encode(backbone.prompt.words))
        assert_close(features(backbone), features(fixed), atol=1e-5, rtol=1e-5)
        backbone.prompt.words.mul_(30)
        assert (features(backbone) - features(fixed)).abs().max() > 1e-3


def test_no_cut_before_the_prompt_is_needed_depends_on_it():
    backbone = prompted()

    state = backbone.prefix(SOURCE, 0)

    assert not any(value.requires_grad for value in state.values.values())
    assert torch.equal(backbone.suffix(state, 0).values, backbone(SOURCE).values)


@pytest.mark.parametrize("build", [prompted, conditioned])
@pytest.mark.parametrize("ensemble", [1, 2])
def test_a_step_moves_the_prompt_and_not_a_bit_of_the_rest(build, ensemble):
    backbone = build(ensemble=ensemble)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()
    keep_frozen_in_eval(backbone)
    assert not any(part.training for part in (backbone.units, backbone.prompt.text))
    wanted = {f"prompt.{name}" for name in (CPM if backbone.pairwise else {"words"})}

    values = features(backbone)
    (values * torch.randn_like(values)).sum().backward()
    torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2).step()

    assert {name for name, p in backbone.named_parameters() if p.requires_grad} == wanted
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == (name in wanted), name
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]) != (name in wanted), name


@pytest.mark.parametrize("build", [prompted, conditioned])
def test_gradients_are_slopes_all_the_way_from_the_features_to_the_words(build):
    backbone = build().double()
    moving = [p for p in backbone.parameters() if p.requires_grad]
    weights = torch.rand(4, 24, 4, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)) - 0.5

    def loss():
        return (features(backbone, torch.double) * weights).sum()

    gradients = torch.autograd.grad(loss(), moving)
    steepness = sum(g.square().sum() for g in gradients)
    step, sides = 1e-5 / steepness**0.5, []
    with torch.no_grad():
        for move in (step, -2 * step):
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.add_(move * gradient)
            sides.append(loss())

    assert steepness > 1e-6
    assert_close((sides[0] - sides[1]) / (2 * step), steepness, rtol=1e-4, atol=0)


def test_only_what_was_learned_would_be_saved():
    """The transformer and the text encoder are frozen, and tuning adds no buffer that a checkpoint would hold."""
    plain, backbone = tiny_sd(), conditioned()

    added = set(backbone.state_dict()) - set(plain.state_dict())
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}

    assert added - frozen == {f"prompt.{name}" for name in CPM}


def test_words_of_a_pair_are_what_the_formula_says():
    module = conditioned(tokens=3, conditional=5).prompt
    seen = torch.rand(2, 16, 48)

    words = module.compute_words(seen)

    projected = linear(seen, module.project.weight, module.project.bias)
    mixed = torch.einsum("mn,bnd->bmd", module.mix.weight, projected) + module.mix.bias[:, None]
    for i in range(5):
        cells = mixed[:, math.floor(i * 16 / 5) : math.ceil((i + 1) * 16 / 5)]
        expected = (cells.amax(dim=1) + module.position[0, i]) * module.gate[0, i].tanh()
        assert_close(words[:, i], expected)


def test_both_images_of_a_pair_get_the_prompt_made_of_source_then_target():
    backbone, fixed = conditioned(), tiny_sd()
    module = backbone.prompt

    with torch.no_grad():
        looks = [module.encode_cells(image[:1]) for image in (SOURCE, TARGET)]
        words = torch.cat((module.words, module.compute_words(torch.cat(looks, dim=2))), dim=1)
        fixed.prompt = FixedPrompt(module.text.encode(words))
        a, b = backbone.pair(SOURCE, TARGET)

        assert_close(a.values[:1], fixed(SOURCE[:1]).values, atol=1e-5, rtol=1e-4)
        assert_close(b.values[:1], fixed(TARGET[:1]).values, atol=1e-5, rtol=1e-4)
        other, _ = backbone.pair(SOURCE, SOURCE)
        assert (other.values - a.values).abs().max() > 1e-4
        with pytest.raises(UserError, match="depend on both images"):
            backbone(SOURCE)


def test_a_closed_gate_makes_every_pair_alike():
    backbone = conditioned()
    backbone.prompt.gate.data.zero_()

    with torch.no_grad():
        a, _ = backbone.pair(SOURCE, TARGET)
        b, _ = backbone.pair(SOURCE, SOURCE)

    assert torch.equal(a.values, b.values)


def test_a_pair_may_have_images_of_two_sizes():
    with torch.no_grad():
        a, b = conditioned().pair(SOURCE, TARGET[..., :64])

    assert (a.values.shape, b.values.shape) == ((2, 24, 4, 8), (2, 24, 4, 4))


def test_the_hash_tells_which_transformer_saw_the_pairs():
    assert prompted().sha256 == tiny_sd().sha256
    assert conditioned().sha256 == conditioned().sha256
    assert len({tiny_sd().sha256, conditioned().sha256, conditioned(seed=2).sha256}) == 3


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_prompt_is_learned_in_a_fused_backbone_too(pairwise):
    backbone = FusedBackbone([tiny_sd(size=64), tiny(size=32)])
    before = backbone.sha256

    if pairwise:
        conditional_prompt(backbone, 2, 3, **DINO)
    else:
        prompt(backbone, 4)

    a, _ = backbone.pair(SOURCE, TARGET)
    a.values.square()[:, :5].sum().backward()
    moved = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert moved == {f"parts.0.prompt.{name}" for name in (CPM if pairwise else {"words"})}
    assert (backbone.pairwise, backbone.sha256 != before) == (pairwise, pairwise)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: prompt(tiny()), "vit_tiny_patch16_224 has no prompt to learn: give backbone=sd"),
        (lambda: conditional_prompt(tiny(), **DINO), "has no prompt to learn"),
        (lambda: prompted(tokens=76), "room for 1 to 75 tokens, got 76: change `finetune.tokens`"),
        (lambda: prompted(tokens=0), "room for 1 to 75 tokens, got 0"),
        (lambda: conditioned(tokens=30, conditional=46), "room for 1 to 75 tokens, got 76"),
        (lambda: conditioned(conditional=0), "`finetune.conditional` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_prompted_is_refused_with_the_reason(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert message in str(error.value)


@pytest.mark.parametrize(("choice", "tokens"), [("prompt", 75), ("cpm", 25)])
def test_the_yaml_is_the_published_choice(config, choice, tokens):
    backbone = tiny_sd()
    chosen = config("train", "backbone=sd", f"finetune={choice}").finetune

    instantiate(chosen)(backbone, **(DINO if choice == "cpm" else {}))

    assert backbone.prompt.words.shape == (1, tokens, 12)
    assert choice == "prompt" or backbone.prompt.position.shape == (1, 50, 12)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("choice", ["finetune=prompt", "finetune=cpm"])
@pytest.mark.slow
def test_a_run_saves_the_prompt_alone_and_scores_with_it(config, creatures, tmp_path, choice):
    given = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "trainer=cpu", choice]
    given += ["backbone=sd", f"backbone.weights={write_parts(tmp_path, parts())}"]
    given += ["backbone.size=64", "backbone.ensemble=1"]
    if choice == "finetune=cpm":
        given += ["finetune.dino=vit_tiny_patch16_224", "finetune.pretrained=false", "+finetune.depth=1"]
    quick = ["data.steps=2", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.backbone_lr=0.01"]
    run = tmp_path / "run"

    trained = train(config("train", *given, *quick, f"run_dir={run}"))
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    again = [f"checkpoint={run}", f"run_dir={tmp_path / 'again'}"]
    scored = evaluate(merge_checkpoint_config(config("evaluate", *again), again))

    assert set(saved) == {f"backbone.prompt.{name}" for name in (CPM if choice == "finetune=cpm" else {"words"})}
    assert scored["pck"] == trained["pck"]
