"""Lines of commands with flags that cannot be meant: one sentence, exit code 2, nothing read at length or written."""

import importlib
import random
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from PIL import Image
from test_outputs import TRAINED, listing
from test_typed_lines import damage
from tiny_runs import run_dir

from semcorr.__main__ import main
from semcorr.cli.verb_line import check_words
from semcorr.compare import app as compare_app
from semcorr.core.errors import UserError
from semcorr.export import app as export_app
from semcorr.match import app as match_app
from semcorr.prepare import app as prepare_app
from semcorr.transfer import app as transfer_app


class BegunError(BaseException):
    """The work has begun."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands read; no line changes it."""
    tmp_path = tmp_path_factory.mktemp("place")
    for name in ("a", "b", "ä, (1)=[x]"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    run_dir(tmp_path / "run")
    run_dir(tmp_path / "other", off=1.0)
    run_dir(tmp_path / "trained", config=TRAINED)
    for name in ("empty", "half", "images", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "config.yaml").write_text((tmp_path / "trained" / "config.yaml").read_text())
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "c.png")
    (tmp_path / "coco.json").write_text("{}")
    (tmp_path / "text.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple]:
    """The exit code of a line, and what it said."""

    def begin(*_: object, **__: object) -> None:
        raise BegunError

    for module, name in (
        ("semcorr.engine.build", "build_datamodule"), ("semcorr.engine.build", "build_module"),
        ("semcorr.inference.load", "build_module"), ("semcorr.engine.rebuild", "build_module"),
        ("semcorr.benchmark.match", "measure_machine"), ("semcorr.data.download.install", "_build"),
        ("semcorr.benchmark.match", "measure"), ("semcorr.data.download.verify", "verify_benchmark"),
        ("semcorr.benchmark.runs", "write_spair_scale"), ("semcorr.app.command", "bind_socket"),
    ):  # fmt: skip
        monkeypatch.setattr(importlib.import_module(module), name, begin)
    monkeypatch.setattr("semcorr.app.command.require_extra", lambda *_: None)
    monkeypatch.setenv("SEMCORR_STORE", str(place / "store"))
    monkeypatch.setenv("SEMCORR_DATA", str(place / "nowhere"))
    monkeypatch.chdir(place)

    def outcome(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["semcorr", *shlex.split(line)])
        try:
            code = main()
        except BegunError:
            return -1, "begun"
        return code, capfd.readouterr().err

    return outcome


WRONG = {
    "": ["-> no command is given", "trian -> Did you mean train", "Match a.png b.png -> Did you mean match?"],
    "compare": [
        "-> RUN_A and RUN_B are missing", "run -> RUN_B is missing", "run other run -> `run` is one argument too many",
        "run other --draws ten -> a whole number, between 100 and 1000000, got 'ten'",
        "run other --draws 0 -> got 0", "run other --draws 1e30 -> got '1e30'", "run other --draws nan -> got 'nan'",
        "run other --seed -1 -> between 0 and 4294967295",
        f"run other --seed 1{'0' * 400} -> got a number of 1329 bits",
        "run other --alphas 10 -> at most 1", "run other --alphas inf -> at most 1",
        "run other --alphas nan -> at most 1",
        "run other --alphas -0.1 -> more than 0", "run other --alphas 0.1,,0.2 -> with commas between",
        "run other --alphas 0.1,0.10 -> a number twice", "run other --alphas '' -> has no value",
        "run other --alpha 0.1 -> Did you mean --alphas?", "run other --seed 1 --seed 2 -> `--seed` is given twice",
        "run run -> is both RUN_A and RUN_B", "run a.png -> Give the run_dir of a finished evaluation",
        "run half -> has no metrics.json", "'' other -> an argument is empty", "run ' ' -> an argument is empty",
        "run other seed=1 -> `seed=1` is not a flag. Give --seed=1", "run other -m -> is a flag of train and evaluate",
        "run other --seed -> has no value", "run other --seed --draws 200 -> `--draws` reads as a flag",
        "-5 run -> unknown flag `-5`",
    ],
    "search": [
        "-> no command is given", "layer -> Did you mean layers?", "--beam 2 layers -> stands before the command",
        "layers --beam 0 -> between 1 and 100", "layers --most 1.5 -> a whole number", "layers --pairs 0 -> at least 1",
        "layers --layers 3 -> unknown flag `--layers`", "layers --beam 2 --beam 3 -> given twice",
        "layers backbone=dino2 -> Did you mean dinov2", "layers seed -> has no value",
        "layers backbone=tiny backbone.layers=[a] data=pf_willow -> `backbone.layers` must be",
        "layers backbone=tiny objective=pck.all.images.0.1 -> Did you mean pck.all.image",
        "layers backbone=tiny -m -> is a flag of train and evaluate",
    ],
    "audit": [
        "-> RUN_DIR is missing", "a.png -> is not a folder", "empty -> is not a run_dir", "half -> has not finished",
        "run data.rot=x -> Did you mean data.root?", "run other -> Give key=value", "run data.root= -> has no value",
        "run data.root=a data.root=b -> given twice", "run data=spair -> is a section",
        "run --resize squish -> Did you mean squash",
        "run --resize squash --resize corner -> given twice", "run --cfg job -> is a flag of train and evaluate",
        "run backbone.size=nan data.root=images -> `backbone.size` must be",
        "run localise.window=4 data.root=images -> `localise.window` must be odd",
    ],
    "export": [
        "-> RUN is missing", "empty -> config.yaml does not exist", "run -> is not a training run",
        "half -> half/checkpoints/best.ckpt does not exist", "a.png -> is a file",
        "trained --format onx -> Did you mean onnx?", "trained --which bset -> Did you mean best",
        "trained --which last -> is a frozen run", "trained --size 448 -> --size goes with --format onnx",
        "trained --format onnx --size -14 -> a side in pixels", "trained --format onnx --size 1e30 -> HEIGHTxWIDTH",
        "trained --out x.bin -> must end with .safetensors", "trained --out --force -> `--force` reads as a flag",
        "trained --weights nowhere.pth -> --weights: nowhere.pth does not exist", "trained --force=1 -> takes no value",
        "trained data.root=x -> key=value is for train and evaluate", "trained --out '' -> has no value",
    ],
    "match": [
        "a.png -> B is missing", "a.png b.png c.png -> one argument too many", "a.png b.png --otu x -> --out",
        "a.png b.png --most 0 -> between 1 and 100000", "a.png b.png --most 1.5 -> a whole number",
        "a.png b.png --most \uff13 -> a whole number",
        "a.png b.png --points -> has no value", "a.png b.png --points 3,3,3 -> must be like 120,80",
        "a.png b.png --points nan,3 -> (nan, 3) lies outside", "a.png b.png --points 1000,3 -> is 40 x 30 pixels",
        "a.png b.png --points 1e400,3 -> (inf, 3) lies outside", "a.png b.png --points -5,3 -> (-5, 3) lies outside",
        "a.png b.png --points 3,3 --mutual -> no effect beside --mutual",
        "a.png b.png --points 3,3 --most 4 -> no effect beside --points",
        "a.png b.png --precision 64 -> has no choice '64'", "a.png b.png --device cud -> must be cpu or cuda",
        "a.png b.png --device cuda:99 -> is not available", "a.png b.png --model dino2 -> Did you mean dinov2",
        "a.png b.png --model empty -> is neither a backbone nor", "nowhere.png b.png -> does not exist",
        "a.png nowhere.png -> does not exist", "a.png text.txt -> not an image", "images b.png -> is a folder",
        "a.png empty -> has no images", "a.png b.png --out a.png -> is a file",
        "a.png b.png --out . -> would be replaced",
        "a.png b.png --dense=yes -> takes no value", "a.png b.png --dense --dense -> is given twice",
        "a.png b.png -dense -> Did you mean --dense?", "a.png b.png most=3 -> Give --most=3",
        "'~/nowhere.png' b.png -> /nowhere.png does not exist", "'x\ny.png' b.png -> x\\ny.png does not exist",
        "'ä, (1)=[x].png' nowhere -> nowhere does not exist", "a.png b.png --out a.png/x -> is a file",
    ],
    "transfer": [
        "coco.json -> IMAGES is missing", "images coco.json -> images is a folder",
        "coco.json images --use vot -> mean vote?",
        "coco.json images --min-score 80 -> at least 0 and below 1", "coco.json images --min-score nan -> got nan",
        "coco.json images --place 1e30 -> at most 1000000", "coco.json images --box xyhw -> Did you mean xywh",
        "coco.json images --flip --no-flip -> before as --flip", "coco.json images --categry cat -> mean --category?",
        "coco.json images --out coco.json -> is the file of the annotations",
        "coco.json images --out images -> a folder",
        "coco.json images --draw images/drawn -> lies in images",
        "coco.json images --video images --flip -> has no effect beside --video",
        "coco.json images --video images --place 0.1 -> has no effect beside --video",
        "coco.json images --video images --category cat -> has no effect beside --video",
        "coco.json images --first 1 -> has no effect without --video", "coco.json images --video nowhere -> not exist",
        "coco.json images --video images --first 1 -> is a folder",
        "coco.json images --model dino2 -> Did you mean dinov2",
        "coco.json images --out x.json --draw x.json -> is the file of --out", "nowhere.json images -> does not exist",
    ],
    "prepare": [
        "-> NAME is missing", "spiar -> Did you mean spair?", "SPair -> Did you mean spair?",
        "data=spair -> Did you mean spair?",
        "spair --archive nowhere.tar -> no such file", "spair --verify --archive a.png -> no effect beside --verify",
        "spair --verify --yes -> no effect beside --verify", "spair --report x.json -> no effect without --verify",
        "spair --root a.png -> is not a whole spair tree", "spair -y --yes -> is given twice",
        "spair --root -> no value",
        "all --root empty -> SEMCORR_DATA=DIR moves them", "spair --verfy -> Did you mean --verify?",
    ],
    "report": [
        "-> RUNS... is missing", "empty -> holds no run", "half -> has not finished", "run run/ -> is given twice",
        "run --out a.png -> is a file", "run --out run -> is one of the runs", "run --root a.png -> is not a folder",
        "run --seconds --no-seconds -> before as --seconds", "run --secnds -> --seconds", "run seed=1 -> not a folder",
    ],
    "store": [
        "-> no command is given", "lst -> Did you mean ls?", "--root store ls -> stands before the command",
        "ls --root a.png -> there is no store", "ls --key x -> unknown flag `--key`", "ls x -> It takes flags alone",
        "verify --remove=1 -> takes no value", "prune --key xyz -> no key begins so", "prune --key '' -> has no value",
        "prune --older-than nan -> at least 0", "prune --max-gb 1,5 -> a number", "prune --max-gb 1e30 -> at most",
        "prune --all --max-gb 1 -> no effect beside --all", "prune max_gb=1 -> Give --max-gb=1",
    ],
    "benchmark": [
        "-> no command is given", "mtach -> Did you mean match?", "read-outs -> Did you mean readouts?",
        "match --pairs 10000 -> make up to 90 pairs", "match --grid 1000000 -> between 2 and 1024",
        "match --naive_pairs 10 -> Did you mean --naive-pairs", "match --device tpu -> Did you mean cpu?",
        "match --out empty -> Is a directory", "match --out a.png -> not a benchmark.json",
        "match pairs=3 -> --pairs=3",
        "evaluate --backbone dino2 -> Did you mean dinov2", "evaluate --size 1e11 -> a whole number",
        "evaluate --scale spair --part 80 -> at most 1", "evaluate --part 0.5 -> no effect without --scale",
        "evaluate --scale demo --part 0.5 -> no effect with --scale demo", "evaluate --split tst -> Did you mean test?",
        "evaluate --root empty --scale spair -> no effect beside --root", "evaluate --folder a.png -> is a file",
        "train --steps 1 -> at least 3", "store --encode-ms inf -> positive", "conv4d --kernel 4 -> odd and positive",
        "store --encode-ms 5 --backbone tiny -> no effect beside --encode-ms", "startup --device cpu -> unknown flag",
    ],
    "app": [
        "x -> one argument too many", "--port 70000 -> between 0 and 65535", "--prot 3 -> Did you mean --port",
        "--runs a.png -> is not a folder", "--allow-host http://x/y -> a name or an address",
        "--host '' -> has no value", "--model dino2 -> Did you mean dinov2", "--port 80.5 -> a whole number",
    ],
}  # fmt: skip
LINES = [f"{verb} {line}".strip() for verb, lines in WRONG.items() for line in lines]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", LINES)
def test_a_wrong_line_of_a_verb_is_refused_and_nothing_is_left(typed, place, case):
    line, _, message = case.rpartition("-> ")
    before = listing(place)

    code, output = typed(line)

    assert code == 2, output
    assert output.startswith("Error: ")
    assert (output.count("\n"), "Traceback" in output) == (1, False)
    assert message in output
    assert len(output) < 500
    assert listing(place) == before


@pytest.mark.parametrize("line", [
    "match a.png b.png --points -0.4,3 5,5", "match a.png -- b.png", "match a.png b.png --out=-x --precision bf16",
    "match 'ä, (1)=[x].png' images --out 'new, (1)=ä/deep'", "audit run data.root=images --resize corner",
    "export trained --format onnx --size 96x192", "benchmark match --pairs 3 --naive-pairs 2",
    "app --host ::1 --allow-host page.example:80", "app --model 'tiny localise.window=9'",
])  # fmt: skip
def test_what_can_be_meant_comes_as_far_as_the_work(typed, line):
    assert typed(line) == (-1, "begun")


def test_a_path_below_the_home_is_one_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command = typer.main.get_command(match_app)

    assert check_words(command, ["~/a.png", "b~.png", "--out=~/x"]) == [
        "--out=/home/me/x",
        "--",
        "/home/me/a.png",
        "b~.png",
    ]


def check_damage(seed: int) -> None:
    """Whatever the door lets through Typer takes as well."""
    name, app, line = SOUND[seed % len(SOUND)]
    words = line.split()
    at = random.Random(seed).randrange(len(words))
    words[at] = damage(words[at], seed)
    command = typer.main.get_command(app)
    with suppress(UserError):
        command.make_context(name, check_words(command, words))


SOUND = [
    ("match", match_app, "a.png b.png --most 3 --dense --out o --precision bf16"),
    ("transfer", transfer_app, "a.json images --use best --min-score 0.1 --no-flip --draw d"),
    ("export", export_app, "run --format onnx --size 448x448 --which last --force"),
    ("compare", compare_app, "one two --draws 200 --seed 3 --alphas 0.1,0.2"),
    ("prepare", prepare_app, "spair --verify --report r.json --root d"),
]


@pytest.mark.parametrize("seed", range(100))
def test_damage_to_a_line_is_refused_or_is_a_line(seed):
    check_damage(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 600))
def test_random_damage_to_a_line_of_a_verb_is_refused_or_read(seed):
    check_damage(seed)
