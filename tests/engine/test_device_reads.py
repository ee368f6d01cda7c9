"""A step of training never waits for a GPU, and a batch that is scored waits for it once; shown without one.

On the stand-in of `standin_device`, in processes of its own: it renames a backend of PyTorch.
"""

import json
import os
import subprocess
import sys
from inspect import isbuiltin
from itertools import cycle, islice, product
from pathlib import Path

import pytest
import torch

from semcorr.engine.known_targets import conf_dir

pytestmark = pytest.mark.integration

HELPERS = Path(__file__).parents[1] / "helpers"
OPTIONS = {  # by head and by way
    "adaptformer_marco": "finetune.blocks=2",  # the tiny backbone has four blocks
    "lora_imcorr": "finetune.blocks=2",
    "consensus": "backbone.size=32",  # 4-D convolutions on a CPU
    "chm": "backbone.size=32",
    "consensus_adaptive": "backbone.size=32",
    "consensus_original": "backbone.size=32",
}
EXTRA = {  # what else steps and batches can be made of, by head
    "aggregation": "protocol=all localise=published",
    "bottleneck": "protocol=semcorr localise=[argmax,bilinear_nn,soft,window_5,window_15_zero,kernel_7]",
    "consensus": "loss=image_level",
    "consensus_original": "loss=warp",
    "match_to_match": "loss=together loss.cycle=1 loss.mask=1 loss.contrastive=0",
    "cats": "loss=pseudo_labels loss.balance=true callbacks=ema_teacher",
    "cross_attention": "loss=together loss.image_level=1 loss.pseudo_labels=1 loss.contrastive=0 callbacks=ema_teacher",
    "cosine": "loss=together pairs=pose_variant trainer.gradient_clip_val=1",
    "self_attention": "backbone=sam backbone.size=64 backbone.pretrained=false +backbone.embed_dim=48 "
    "+backbone.depth=4 +backbone.num_heads=3 +backbone.global_attn_indexes=[0,1,2,3] +backbone.img_size=128",
    "upsample": "loss=learned_temperature data.all_pairs=3 feature_dropout=0.1",
}
WITHOUT_WEIGHTS = ("cosine", "gromov_wasserstein", "transport")
TINY_SD = "backbone.size=64 backbone._target_=tiny_diffusion.build_tiny_sd"
VISION = (
    "dino=vit_tiny_patch16_224 pretrained=false dino_size=32 patch_size=8 embed_dim=24 depth=1 num_heads=2 tokens=2"
)
DIFFUSION = {  # ways that are for Stable Diffusion alone
    "prompt": f"backbone=sd {TINY_SD} finetune.tokens=4",
    "cpm": f"backbone=sd {TINY_SD} " + " ".join(f"++finetune.{option}" for option in VISION.split()),
    "combined": f"backbone=sd_dinov2 {TINY_SD}_dinov2 "
    + " ".join(f"++finetune.ways.diffusion.{option}" for option in VISION.split()),
}
OF_PAIRS = "backbone._target_=pair_backbones.HalfMixed"  # a backbone that sees both images
PAIRED_WAYS = tuple(f"finetune={way} {DIFFUSION[way]}" for way in ("cpm", "combined"))  # whose prompt does
GUIDED = "loss=distillation loss@loss.terms.mined=guided_matches"  # which never waits
MINING = "loss=distillation loss.terms.mined.least=1"
MINED_IN = {"semcorr/models/losses/mined_matches.py", "semcorr/matching/mining.py"}
OF_A_STEP, OF_A_PAIR, PAIRS = 5, 10, 2  # waits for mining: points and back; masks, maps and neighbours of a pair
COPY = [["copy to the host", "semcorr/core/device.py"]]
FINITE = ["copy to the host", "semcorr/core/finite.py"]  # whether features are that are computed of pairs


def names(group: str, without: set[str] = frozenset()) -> list[str]:
    return sorted({path.stem for path in (conf_dir() / group).glob("*.yaml")} - without)


HEADS, WAYS = names("head"), names("finetune", {*DIFFUSION})
COUNT = max(len(HEADS), len(WAYS))
PAIRED = [*islice(zip(cycle(HEADS), cycle(WAYS), strict=False), COUNT)]  # every head and every way


def line(head: str, way: str) -> str:
    return " ".join([f"head={head}", f"finetune={way}", *(OPTIONS[key] for key in (head, way) if key in OPTIONS)])


def run_program(name: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(conf_dir().parent / "src"), str(HELPERS)])}
    command = [sys.executable, str(HELPERS / name), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def assert_waits(creatures: Path, folder: Path, cases: list[str]) -> None:
    """Train and score every case, and compare what the host waited for, with the file that asked."""
    run_program("device_reads.py", folder / "answers.json", creatures, *cases)
    answers = json.loads((folder / "answers.json").read_text())

    assert {case: answer["error"] for case, answer in answers.items() if answer["error"]} == {}
    for case, answer in answers.items():
        has_steps = case not in [line(head, "frozen") for head in WITHOUT_WEIGHTS]  # nothing to train
        steps, *stages = (
            [[[operation, place.partition(":")[0]] for operation, place in waits] for waits in answer[stage]]
            for stage in ("steps", *["validate"] * has_steps, "test")
        )
        if case.startswith(MINING):
            assert [len(step) for step in steps] == [OF_A_STEP + OF_A_PAIR * PAIRS], case
            assert {place for _, place in steps[0]} == MINED_IN, case
        else:
            assert steps == [[]] * has_steps, case
        batch = [FINITE, *COPY] if case.startswith(OF_PAIRS) or case.startswith(PAIRED_WAYS) else COPY
        assert stages == [[batch]] * len(stages), case


@pytest.mark.sampled(3)
@pytest.mark.parametrize("third", range(3))
def test_no_step_waits_and_a_scored_batch_waits_once(creatures, tmp_path, third):
    """Every head and every way of tuning, and what else a step or a batch can be made of."""
    cases = [*(f"{line(head, way)} {EXTRA.get(head, '')}".strip() for head, way in PAIRED), GUIDED]
    assert_waits(creatures, tmp_path, cases[third::3])


@pytest.mark.slow
def test_pairs_seen_together_wait_once_more_and_mining_alone_waits_in_a_step(creatures, tmp_path):
    """Both images of a pair at once, by the backbone or by its prompt; matches are mined on the CPU by design."""
    prompts = [f"finetune={way} {options}" for way, options in DIFFUSION.items()]
    assert_waits(creatures, tmp_path, [*prompts, OF_PAIRS, MINING])


@pytest.mark.slow
def test_no_step_waits_whatever_head_is_tuned_in_whatever_way(creatures, tmp_path):
    assert_waits(creatures, tmp_path, [line(*pair) for pair in product(HEADS, WAYS) if pair not in PAIRED])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [OF_PAIRS, MINING, *(f"finetune={way} {options}" for way, options in DIFFUSION.items())]
)
def test_neither_does_one_of_pairs_of_prompts_or_of_mining_with_any_head(creatures, tmp_path, kind):
    heads = [f"head={head} {OPTIONS.get(head, '') if 'sd' not in kind else ''}".strip() for head in HEADS]
    assert_waits(creatures, tmp_path, [f"{kind} {head}" for head in heads])


def test_the_stand_in_stays_out_of_the_process_that_looks_for_examples_in_its_program():
    """There PyTorch would no longer make tensors on the device of a context, nor transformers its weights."""
    import device_reads  # noqa: F401 # as pytest's doctests do

    assert isbuiltin(torch.tensor)


def test_the_stand_in_notices_what_a_gpu_would_wait_for_or_refuse():
    answers = json.loads(run_program("standin_device.py"))

    waits = {
        "item": ["aten._local_scalar_dense.default"],
        "bool": ["aten._local_scalar_dense.default"],
        "tolist": ["copy to the host"],
        "cpu": ["copy to the host"],
        "nonzero": ["aten.nonzero.default"],
        "mask": ["aten.index.Tensor by a mask"],
        "write by a mask": ["aten.index_put_.default by a mask"],
        "list": ["blocking copy to the device"],
        "unique": ["aten._unique2.default"],
        "equal": ["aten.equal.default"],
        "repeat": ["aten.repeat_interleave.Tensor"],
        "upload": ["blocking copy to the device"],
        "waiting upload": ["blocking copy to the device"],
        "two devices": ["refused: RuntimeError"],
        "two types": ["refused: RuntimeError"],
        "numpy": ["refused: TypeError"],
    }
    free = ("upload behind the program's back", "factories", "masked fill", "index on the device", "number of the host")
    expected = waits | {name: [] for name in free}
    assert answers == {
        **expected,
        **{f"{name}, inference": operations for name, operations in expected.items()},
        "training": [],
        "types under autocast": ["torch.bfloat16", "torch.float32", "torch.float32", "torch.float32"],
    }
