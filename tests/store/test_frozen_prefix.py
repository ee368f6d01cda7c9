"""What does not move is computed once per image, and training cannot tell the difference."""

import csv
import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch

from semcorr.core.files import part_path
from semcorr.engine.build import build_datamodule_and_module, build_training_parts, use_cached_features
from semcorr.evaluate import evaluate
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.store import cache as held
from semcorr.store import feature_store
from semcorr.store.frozen import frozen_depth
from semcorr.train import train

pytestmark = pytest.mark.integration

STEPS = [
    "data.batch_size=2",
    "data.steps=4",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "optimizer.backbone_lr=1e-3",
]


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `prefix` was given."""
    seen, real = [], TimmModel.prefix

    def counted(self, image, depth):
        seen.append(len(image))
        return real(self, image, depth)

    monkeypatch.setattr(TimmModel, "prefix", counted)
    return seen


def losses(run: str | Path) -> list[float]:
    rows = csv.DictReader((Path(run) / "metrics.csv").read_text().splitlines())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


def trained(config, *line):
    cfg = config("train", *line)
    metrics = train(cfg)
    weights = torch.load(Path(cfg.run_dir) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return losses(cfg.run_dir), metrics, weights


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(["finetune.blocks=2"], marks=pytest.mark.slow),
        pytest.param(["finetune.blocks=1", "augment=flip"], marks=pytest.mark.slow),
        pytest.param(["finetune=lora", "finetune.blocks=1"], marks=pytest.mark.slow),
        pytest.param(["data.all_pairs=3"], marks=pytest.mark.slow),
        ["data.all_pairs=3", "augment=flip", "trainer.max_epochs=1"],
    ],
    ids=" ".join,
)
def test_training_from_what_is_kept_gives_the_same_losses_and_weights(config, tiny, tmp_path, prefixes, line):
    """By plain gradient descent: AdamW takes whole steps along gradients that are rounding alone."""
    steps = [*tiny, *STEPS, *line, "optimizer._target_=plain_sgd.sgd", "optimizer.backbone_lr=0.1"]
    off = trained(config, *steps, "store.place=off", f"run_dir={tmp_path / 'off'}")
    assert not prefixes
    kept = trained(config, *steps, f"run_dir={tmp_path / 'kept'}")

    assert 0 < sum(prefixes) <= (15 if "augment=flip" not in line else 30) + 10  # 15 to train on, 10 to validate
    assert len(off[0]) == (4 if "trainer.max_epochs=1" in line else 8)
    assert kept[0] == pytest.approx(off[0], rel=1e-5)
    assert kept[1]["pck"] == off[1]["pck"]
    assert off[2].keys() == kept[2].keys()
    for name, value in off[2].items():
        torch.testing.assert_close(kept[2][name], value, atol=1e-6, rtol=1e-5)


def test_steps_load_no_pixels(config, tiny):
    module, data = training(config("train", *tiny, *STEPS))
    use_cached_features(module, data)

    batch = next(iter(data.train_dataloader()))

    assert module.uses_cached_features
    assert batch.source.image.shape == (2, 3, 0, module.backbone.size)


@pytest.mark.parametrize(
    ("line", "says"),
    [(["augment=colour"], "`augment` changes pixels"), (["store.place=off"], ""), (["finetune.blocks=4"], "")],
)
def test_where_every_step_sees_other_pixels_nothing_is_kept(config, tiny, capsys, line, says):
    """`blocks=4` moves all four blocks of the tiny backbone."""
    module, data = training(config("train", *tiny, *STEPS, *line))

    use_cached_features(module, data)

    assert not module.uses_cached_features
    assert data.train_pixels
    assert says in capsys.readouterr().out


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("finetune", "depth"),
    [
        (["frozen"], None),
        (["last_blocks", "finetune.blocks=1"], 3),
        (["last_blocks", "finetune.blocks=4"], 0),
        (["lora", "finetune.blocks=2"], 2),
        (["lora"], 0),
        (["houlsby", "finetune.blocks=1"], 3),
        (["adaptformer", "finetune.blocks=3"], 1),
    ],
    ids=str,
)
def test_the_cut_is_before_the_first_block_that_moves(config, tiny, finetune, depth):
    module, _ = training(config("train", *tiny, f"finetune={finetune[0]}", *finetune[1:]))

    assert frozen_depth(module.backbone) == depth


def test_what_moves_outside_the_blocks_leaves_nothing_to_keep(config, tiny):
    module, _ = training(config("train", *tiny, "finetune.blocks=1"))
    module.backbone.model.pos_embed.requires_grad_(True)

    assert frozen_depth(module.backbone) == 0


def test_another_run_takes_everything_from_the_disk(config, tiny, tmp_path, prefixes):
    line = [*tiny, *STEPS, "trainer.max_epochs=1", "store=disk", f"store.root={tmp_path / 'store'}", "store.dtype=null"]
    first = trained(config, *line, f"run_dir={tmp_path / 'one'}")
    encoded = sum(prefixes)
    prefixes.clear()

    again = trained(config, *line, f"run_dir={tmp_path / 'two'}")

    assert encoded == len(list((tmp_path / "store").glob("*/*.safetensors"))) > 10 + 15  # validation, test, training
    assert not prefixes
    assert again[0] == first[0]
    assert again[1]["pck"] == first[1]["pck"]


@pytest.mark.slow
def test_a_damaged_entry_is_computed_again_and_reported(config, tiny, tmp_path, caplog):
    line = [*tiny, "store=disk", f"store.root={tmp_path / 'store'}"]
    first = evaluate(config("evaluate", *line))
    entry = next((tmp_path / "store").glob("*/*.safetensors"))
    content = bytearray(entry.read_bytes())
    content[-10] ^= 1
    entry.write_bytes(content)

    again = evaluate(config("evaluate", *line))

    assert first["pck"] == again["pck"]
    assert "is damaged" in caplog.text
    assert bytes(content) != entry.read_bytes()


@pytest.mark.slow
def test_a_full_disk_changes_no_number_and_warns_once(config, tiny, tmp_path, monkeypatch, caplog):
    plain = evaluate(config("evaluate", *tiny))
    room = iter(range(5))  # the key's file, and four images

    def full(path, packed, real=feature_store.write_packed):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, packed)

    monkeypatch.setattr(feature_store, "write_packed", full)
    root = tmp_path / "store"
    stored = evaluate(config("evaluate", *tiny, "store=disk", f"store.root={root}", "store.dtype=null"))

    assert stored["pck"] == plain["pck"]
    assert len(list(root.glob("*/*.safetensors"))) == 4
    assert [str(root) in record.message for record in caplog.records if record.levelname == "WARNING"] == [True]


@pytest.mark.slow
def test_what_does_not_fit_in_memory_is_mapped_from_a_folder_that_goes_away(
    config, tiny, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = trained(config, *tiny, *STEPS, f"run_dir={tmp_path / 'plain'}")
    monkeypatch.setattr(held, "free_memory", lambda: 1)
    killed = part_path(tmp_path / "semcorr")
    killed = killed.with_name(killed.name.replace(f".{os.getpid()}-", ".4194305-"))  # no process has this number
    (killed / "entries").mkdir(parents=True)

    spilled = trained(config, *tiny, *STEPS, f"run_dir={tmp_path / 'spilled'}")

    assert spilled[0] == plain[0]
    assert spilled[1]["pck"] == plain[1]["pck"]
    assert caplog.text.count("do not fit in memory") == 1
    assert not list(tmp_path.glob(".semcorr.*"))


@pytest.mark.slow
def test_features_of_tuned_blocks_are_never_stored(config, tiny, tmp_path):
    run = tmp_path / "tuned"
    before = trained(config, *tiny, *STEPS, f"run_dir={run}")[1]
    line = [*tiny, "store=disk", f"store.root={tmp_path / 'store'}", "store.dtype=null"]
    frozen = evaluate(config("evaluate", *line, f"run_dir={tmp_path / 'frozen'}"))
    tuned = [evaluate(_again(config, run, *line)) for _ in range(2)]

    keys = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("*/key.json")]
    assert sorted(str(key["depth"]) for key in keys) == ["2", "all"]
    assert [each["pck"] for each in tuned] == [before["pck"]] * 2
    assert frozen["pck"] != before["pck"]


@pytest.mark.slow
def test_half_precision_halves_the_entries_and_hardly_changes_the_features(config, tiny, tmp_path):
    sizes = []
    for dtype in ("float32", "float16"):
        root = tmp_path / dtype
        evaluate(config("evaluate", *tiny, "store=disk", f"store.root={root}", f"store.dtype={dtype}"))
        sizes.append(sum(path.stat().st_size for path in root.glob("*/*.safetensors")))

    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.05)


def _again(config, run: Path, *line: str):
    from semcorr.cli.compose import merge_checkpoint_config

    return merge_checkpoint_config(config("evaluate", *line, f"checkpoint={run}"), [*line])


def training(cfg):
    return build_datamodule_and_module(cfg, ("fit", "test"), build_training_parts(cfg))
