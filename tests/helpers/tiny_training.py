"""Settings that make any training one of a step, of a tiny network on the tiny drawn benchmark."""

from collections.abc import Sequence

from omegaconf import DictConfig

TOP = ["finetune.blocks=2", "finetune.rank=2", "localise.window=3", "loss.terms.windowed.window=3"]
PARTS_OF_TOP = ("nothing", "continuous", "annealing", "window", "mining", "everything")  # that keep LoRA
SMALLER = {  # where an experiment names what only fits a large backbone
    "geo_aware/released": ["loss.trained_grid=4"],
    "insid3": ["backbone.debias=3"],
    **dict.fromkeys(["top", "top_ablation", *(f"top_without/{name}" for name in PARTS_OF_TOP)], TOP),
    "top_without/lora": TOP[2:],
    "marco": ["finetune.blocks=2", "finetune.width=8"],
    "unified/gated_layers": ["backbone.layers=[1,3]", "backbone.each_block=false"],
    "unified/hyperfeatures": [
        *("backbone.layers=[1,3]", "backbone.name=vit_tiny_patch16_224", "~backbone.timestep", "~backbone.ensemble"),
        "head.steps=1",
    ],
    "heads/gated_layers": ["backbone.layers=[1,2,3]"],
    "heads/wide": ["backbone.layers=[2,3]"],
    "heads/pose_variant": ["backbone.layers=[2,3]"],
}
NARROW = ["head.out=32", "head.width=8", "head.groups=4"]  # of GeoAware-SC's head, whoever has it


def shrink_training(plain: DictConfig, experiment: str | None, tiny: Sequence[str]) -> list[str]:
    """The settings to add to those of a training.

    `plain` is its configuration with those of `tiny` alone.
    """
    line = [*tiny, *SMALLER.get(experiment or "", []), "backbone.size=32", "data.batch_size=2"]
    line += NARROW if plain.head._target_.endswith("Aggregation") else []
    line += ["~backbone.components"] if "components" in plain.backbone else []  # tiny has none
    return [*line, "trainer.fast_dev_run=true"]
