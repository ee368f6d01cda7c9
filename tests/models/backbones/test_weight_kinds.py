"""What people give for weights is loaded as it means, or told for what it is: never an advice to load unsafely."""

import pytest
import torch
from backbone_cases import tiny
from random_damage import damage
from weight_kinds import OTHER, POINTER, WRAPPED, chunked, saved, write_as

from semcorr.core.errors import UserError
from semcorr.engine.checkpoints import load_checkpoint
from semcorr.engine.saved_config import read_run_config
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.state_dict_conversion import merge_block_chunks

pytestmark = pytest.mark.integration

CONTAINERS = ("zip", "script", "legacy", "safetensors")
CHECKED = ("zip", "script")  # by checksums, which the others have not
UNSAFE = ("weights_only", "torch.load", "Weights only", "Traceback", "arbitrary code")
DINO = {"size": 56, "pretrained": False, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def own() -> dict[str, torch.Tensor]:
    return tiny(seed=5).model.state_dict()


def refused(build, path) -> str:
    with pytest.raises(UserError) as error:
        build(weights=str(path))
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message or "the file" in message
    assert not any(word in message for word in UNSAFE), message
    return message


@pytest.mark.parametrize("kind", OTHER)
def test_a_file_of_another_kind_is_named_whatever_its_ending(own, tmp_path, kind) -> None:
    write, message = OTHER[kind]
    content = write(own)
    for ending in ("pth", "bin", "safetensors"):
        path = tmp_path / f"model.{ending}"
        path.write_bytes(content)

        with pytest.raises(UserError, match=message):
            read_weights(path)

        assert refused(lambda weights: read_weights(weights), path).startswith(f"`backbone.weights`: {path}")


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_read_whatever_they_are_wrapped_in(own, tmp_path, kind) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(saved(WRAPPED[kind](own)))

    loaded = tiny(weights=str(path)).model.state_dict()

    assert all(torch.equal(loaded[key], own[key]) for key in own)


@pytest.mark.parametrize("how", CONTAINERS)
@pytest.mark.parametrize("ending", ["pth", "safetensors", "bin", "weights"])
def test_a_container_is_recognised_by_its_bytes(own, tmp_path, how, ending) -> None:
    write_as(how, own, tmp_path / f"model.{ending}")

    read = read_weights(tmp_path / f"model.{ending}")

    assert read.keys() == own.keys()
    assert all(torch.equal(read[key], own[key]) for key in own)


def dinov2(registers: bool, **options) -> TimmModel:
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    return TimmModel(name, **(DINO | options))


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' layout of what timm has."""
    state = state | {"mask_token": torch.zeros(1, 48)}
    if "reg_token" in state:
        state = {"register_tokens" if key == "reg_token" else key: value for key, value in state.items()}
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), state["pos_embed"]], 1)
    return state


@pytest.mark.parametrize("layout", [dict, official, chunked])
@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_with_and_without_registers_are_not_taken_for_each_other(tmp_path, layout, registers) -> None:
    whole = dinov2(registers).model.state_dict()
    torch.save(layout(whole), tmp_path / "model.pth")

    loaded = dinov2(registers, weights=str(tmp_path / "model.pth")).model.state_dict()
    message = refused(lambda **options: dinov2(not registers, **options), tmp_path / "model.pth")

    assert all(torch.equal(loaded[key], whole[key]) for key in whole)
    assert f"The file is of DINOv2 {'with' if registers else 'without'} registers" in message
    assert f"backbone=dinov2{'_reg' if registers else ''}" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 16}, r"the file is of patches of 8 pixels, and this backbone has patches of 16"),
        ({"embed_dim": 96}, "of another shape"),
        ({"depth": 5}, "12 missing: blocks.4"),
        ({"depth": 2}, "not known to this backbone"),
    ],
)
def test_weights_of_another_size_are_refused(own, tmp_path, change, message) -> None:
    torch.save(own, tmp_path / "model.pth")

    with pytest.raises(UserError, match=message):
        tiny(weights=str(tmp_path / "model.pth"), **change)


def test_a_block_may_not_be_missing_and_a_number_too_large_is_reported(own, tmp_path) -> None:
    path = tmp_path / "model.pth"
    torch.save({key: value for key, value in own.items() if not key.startswith("blocks.2.")}, path)
    assert "12 missing: blocks.2." in refused(tiny, path)
    torch.save(own | {"norm.weight": torch.full((48,), 1e300, dtype=torch.float64)}, path)
    assert "48 of the 48 numbers in norm.weight are not finite" in refused(tiny, path)


def test_folders_shards_and_runs_are_recognised(own, tmp_path) -> None:
    shard = tmp_path / "model-00001-of-00002.safetensors"
    write_as("safetensors", own, shard)
    assert "is one part of several" in refused(tiny, shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {' + ", ".join(f'"{key}": "{shard.name}"' for key in own) + "}}")
    assert read_weights(index).keys() == own.keys()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1")
    (run / "checkpoints" / "best.ckpt").write_text(POINTER)
    assert f"directory of a training run. Give it as checkpoint={run}" in refused(tiny, run)
    with pytest.raises(UserError, match=r"is damaged \(is a Git LFS pointer"):
        load_checkpoint(run / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=rf"`checkpoint`: .*best\.ckpt is a file.*Give its run_dir, {run}\."):
        read_run_config(run / "checkpoints" / "best.ckpt", option="checkpoint")
    with pytest.raises(UserError, match=r"is a file.*given as backbone\.weights"):
        read_run_config(shard, option="checkpoint")


@pytest.mark.parametrize("how", CONTAINERS)
@pytest.mark.parametrize("seeds", [range(42), pytest.param(range(42, 542), marks=pytest.mark.slow)])
def test_random_damage_is_refused_or_has_changed_nothing(tmp_path, how, seeds) -> None:
    """Legacy pickles and safetensors have no checksum: a changed number cannot be seen there, and nothing else changes.

    Of archives every outcome is the same numbers, or a refusal.
    """
    backbone = {"embed_dim": 24, "depth": 1, "num_heads": 1}
    state, path = tiny(seed=5, **backbone).model.state_dict(), tmp_path / "model.pth"
    write_as(how, state, path)
    whole, refusals, same = path.read_bytes(), [], 0
    for seed in seeds:
        path.write_bytes(damage(whole, seed))
        try:
            loaded = tiny(weights=str(path), **backbone).model.state_dict()
        except UserError as error:
            refusals.append(str(error))
        else:
            assert loaded.keys() == state.keys()
            assert all((loaded[k].shape, loaded[k].dtype) == (state[k].shape, state[k].dtype) for k in state)
            equal = all(torch.equal(loaded[key], state[key]) for key in state)
            assert equal or how not in CHECKED, seed
            same += equal
    print(f"{how}: of {len(seeds)}, {len(refusals)} refused, {same} with the same numbers")
    assert len(refusals) > len(seeds) / 4
    assert not [output for output in refusals if "\n" in output or any(word in output for word in UNSAFE)]


def test_chunks_are_left_alone_where_there_are_none(own) -> None:
    assert merge_block_chunks(own) is own
