"""What a run is called in a dashboard."""

import pytest
from omegaconf import OmegaConf

from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.loggers import build_wandb_logger
from semcorr.engine.run_name import WANDB, label_run, name_choice, name_run, tag_run

PARTS = {"common", "timm", "transformers", "last_blocks", "last_blocks_norm"}  # of others, or named by their options


EVALUATED = {"tapvid_davis", "davis", "tss", "caltech101", "pascal_parts"}  # benchmarks that nothing is trained on
CHOICES = [
    (group, path.stem)
    for group in ("backbone", "data", "finetune", "head")
    for path in sorted((conf_dir() / group).glob("*.yaml"))
    if path.stem not in PARTS
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_choice_is_named_as_it_was_typed(config, group, name):
    verb = "evaluate" if name in EVALUATED else "train"
    assert name_choice(group, config(verb, f"{group}={name}")[group]) == name


def test_what_no_file_holds_is_named_by_what_it_is(config):
    cfg = config("train", "backbone=timm", "backbone.name=team/vit_x.y", "finetune.blocks=3", "data.root=elsewhere")
    assert name_run(cfg) == "vit_x.y-blocks_3-spair"
    assert name_choice("head", {"_target_": "my.heads.Wide"}) == "Wide"


def test_labels_fill_in_what_is_null_and_leave_what_was_given(config):
    cfg = config("evaluate", "logger=wandb", "name=paper", "finetune=lora")
    node = OmegaConf.to_container(cfg.logger)

    assert label_run(cfg, node) == {
        "name": "dinov2-lora-spair",
        "job_type": "evaluate",
        "tags": ["dinov2", "lora", "spair", "cosine", "semcorr", "paper"],
    }
    assert label_run(cfg, {**node, "name": "x", "job_type": "y", "tags": ["a"]}) == {"tags": [*tag_run(cfg), "a"]}
    assert label_run(cfg, {"_target_": WANDB}) == {}
    assert label_run(cfg, {**node, "_target_": "my.Logger"}) == {}


def test_tags_are_no_longer_than_wandb_takes(config, tmp_path):
    assert tag_run(config("train", f"name={'x' * 70}"))[-1] == "x" * 64
    with pytest.raises(UserError, match=r"`logger\.tags` must be texts of 1 to 64 characters, got 'y"):
        build_wandb_logger(tmp_path, tags=["a", "y" * 65])


def test_tuning_of_blocks_says_whether_the_norm_is_in_it(config):
    for name, expected in (("last_blocks_norm", "blocks_2_norm"), ("last_blocks", "blocks_2"), ("frozen", "frozen")):
        assert name_choice("finetune", config("train", f"finetune={name}").finetune) == expected


@pytest.mark.parametrize(("mode", "output"), [("online", set()), ("offline", {"silent"})])
def test_online_it_is_the_user_who_makes_wandb_silent(tmp_path, mode, output):
    settings = build_wandb_logger(tmp_path, mode=mode)._wandb_init["settings"]
    assert settings.model_fields_set & {"silent"} == output  # what is set here replaces $WANDB_SILENT
