"""What may be done to a run's config.yaml: code to be run, things to be looked up, and plain damage."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml

MARKER = "marker"  # whatever runs leaves a file of this name
FOG = "semcorr.data.corruptions.weather.Fog"
BILATERAL = "semcorr.models.backbones.joint_bilateral.JointBilateral"
TOUCH = {"_target_": "os.system", "command": f"touch {MARKER}"}


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARKER),)


def write_tools(folder: Path) -> None:
    """The files that the routes below would go through."""
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    code = f"import pathlib\n\npathlib.Path({MARKER!r}).touch()\n\ndef evil():\n    return None\n"
    for name in ("hubconf.py", "evil.py"):
        (folder / name).write_text(code)


def put(key: str, value: Any) -> Callable[[dict], str]:
    """An attack that gives a dotted key another value, or a section more of them."""

    def attack(cfg: dict) -> str:
        cfg = deepcopy(cfg)
        *above, last = key.split(".")
        node = cfg
        for name in above:
            node = node[name]
        node[last] = value
        return yaml.safe_dump(cfg, sort_keys=False)

    return attack


def lose(key: str) -> Callable[[dict], str]:
    return lambda cfg: yaml.safe_dump({name: value for name, value in cfg.items() if name != key})


def text(change: Callable[[str], str | bytes]) -> Callable[[dict], str | bytes]:
    return lambda cfg: change(yaml.safe_dump(cfg, sort_keys=False))


def bomb(content: str) -> str:
    lists = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
    return f"l0: &l0 [1]\n{lists}{content}"


CODE = {
    "a shell by collect_env": put("head", {"_target_": "torch.utils.collect_env.run", "command": f"touch {MARKER}"}),
    "a pickle by torch.load": put("head", {"_target_": "torch.load", "f": "evil.pkl", "weights_only": False}),
    "a hub repository": put(
        "head", {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "evil", "source": "local"}
    ),
    "os.system": put("backbone", TOUCH),
    "os.system as the benchmark": put("data", TOUCH | {"resize": "squash", "root": "."}),
    "eval": put("localise", {"_target_": "builtins.eval", "_args_": [f"open({MARKER!r}, 'w')"]}),
    "functools.partial": put("localise", {"_target_": "functools.partial", "_args_": ["os.system", f"touch {MARKER}"]}),
    "a partial call": put("finetune", TOUCH | {"_partial_": True}),
    "arguments by their place": put("backbone._args_", ["evil"]),
    "a known target made partial": put("head._partial_", True),
    "a known target without its partial": lambda cfg: put(
        "finetune", {key: value for key, value in cfg["finetune"].items() if key != "_partial_"}
    )(cfg),
    "another conversion": put("backbone._convert_", "object"),
    "no recursion": put("backbone._recursive_", False),
    "a mode": put("data._mode_", "call"),
    "in a list of readouts": put("localise", {"_target_": "semcorr.matching.readouts.ReadoutList", "rules": [TOUCH]}),
    "in a known argument": put("backbone.weights", TOUCH),
    "in a mapping of a known argument": put("pose.rotations", {"bottle": [TOUCH]}),
    "in the logger": put("logger.settings", TOUCH),
    "in a list of plugins": put("trainer.plugins", [TOUCH]),
    "a known target in an argument": put(
        "backbone.weights", {"_target_": "semcorr.engine.loggers.CSVScalarLogger", "save_dir": MARKER}
    ),
    "in a section of its own": put("hydra", {"launcher": TOUCH}),
    "in the provenance": put("provenance.packages", TOUCH),
    "a logger as a head": put("head", {"_target_": "semcorr.engine.loggers.CSVScalarLogger", "save_dir": MARKER}),
    "a trainer as a benchmark": put("data", {"_target_": "lightning.Trainer", "resize": "squash"}),
    "a target in a list": put("head._target_", ["os.system"]),
    "a target that is a number": put("head._target_", 3),
    "as the corruption": put("corrupt", TOUCH),
    "a partial corruption": put("corrupt", TOUCH | {"_partial_": True}),
    "in a list of corruptions": put("corrupt", [TOUCH]),
    "in an option of the corruption": put("corrupt", {"_target_": FOG, "severity": [[TOUCH]]}),
    "a number of directions": put("backbone.debias", TOUCH),
    "a list of directions": put("backbone.debias", [TOUCH]),
    "as the upsampler": put("backbone.upsample", TOUCH),
    "in a list of upsamplers": put("backbone.upsample", [TOUCH]),
    "in an option of the upsampler": put("backbone.upsample", {"_target_": BILATERAL, "factor": [TOUCH]}),
    "a corruption as the upsampler": put("backbone.upsample", {"_target_": FOG}),
    "as the run to start from": put("start_from", TOUCH),
    "as the score to keep by": put("monitor", TOUCH),
    "the whole file as a call": put("_target_", "os.system"),
    "plugins by name": put("trainer.plugins", "evil.Plugin"),
    "callbacks by name": put("trainer.callbacks", ["evil.Callback"]),
    "a folder of the trainer's": put("trainer.default_root_dir", MARKER),
    "timm's pickle": put("backbone.checkpoint_path", "evil.pkl"),
    "timm's other weights": put("backbone.pretrained_cfg", {"file": "evil.pkl"}),
    "peft's module": put("finetune.megatron_core", "evil"),
}
LOOKED_UP = {
    "a secret as a path": put("backbone.weights", "${oc.env:SECRET}"),
    "a secret as a name": put("name", "runs of ${oc.env:SECRET}"),
    "a secret as a key": put("provenance.packages", {"${oc.env:SECRET}": "1"}),
    "a secret behind a backslash": put("data.root", "\\\\${oc.env:SECRET}"),
    "an interpolated target": lambda cfg: put("head._target_", "${name}")(cfg | {"name": "os.system"}),
    "an interpolated section": put("head", "${backbone}"),
    "what is left open": put("data.root", "???"),
}
DAMAGED = {
    "aliases": text(bomb),
    "a tag": text(lambda content: content + f"evil: !!python/object/apply:os.system ['touch {MARKER}']\n"),
    "two documents": text(lambda content: f"{content}---\n{content}"),
    "depth": text(lambda content: f"{content}deep: {'[' * 100_000}\n"),
    "a key twice": text(lambda content: f"{content}seed: 7\n"),
    "a key that is no text": text(lambda content: f"{content}7: seed\n"),
    "a large number": text(lambda content: f"{content}large: 1{'0' * 400}\n"),
    "a larger number": text(lambda content: f"{content}large: 1{'0' * 5000}\n"),
    "a large file": text(lambda content: f"{content}large: {'x' * 2**20}\n"),
    "not UTF-8": text(lambda content: content.encode() + b"name: \xff\n"),
    "UTF-16": text(lambda content: content.encode("utf-16")),
    "no YAML": text(lambda content: f"{content}data: [\n"),
    "nothing": text(lambda _: ""),
    "a list": text(lambda _: "- 1\n"),
    "a word": text(lambda _: "run\n"),
    "no head": lose("head"),
    "no provenance": lose("provenance"),
    "no optimizer": lose("optimizer"),
    "a number for a section": put("backbone", 3),
    "a section without a target": put("head", {"kernel": 3}),
    "null for a section": put("finetune", None),
    "a seed that is true": put("seed", True),
    "a seed below 0": put("seed", -1),
    "a seed that is no number": put("seed", float("nan")),
    "a list for a checkpoint": put("checkpoint", ["RUN"]),
    "a mapping for a size": put("backbone.size", {"a": 1}),
    "no geometry": lambda cfg: put("data", {key: cfg["data"][key] for key in cfg["data"] if key != "resize"})(cfg),
}
ATTACKS = CODE | LOOKED_UP | DAMAGED

ODD = (
    "",
    "~",
    "[]",
    "{}",
    "true",
    "-1",
    "1e400",
    ".nan",
    "''",
    '"\\0"',
    "'${x}'",
    "&a 1",
    "*a",
    "!!str 1",
    "lightning.Trainer",
)


def damaged(content: str, seed: int) -> bytes:
    """The file after one to three accidents."""
    random = Random(seed)
    for _ in range(random.randint(1, 3)):
        lines = content.splitlines(keepends=True) or ["\n"]
        at, other = random.randrange(len(lines)), random.randrange(len(lines))
        kind = random.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(other, lines[at])
        elif kind == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = f"{lines[at].partition(':')[0]}: {random.choice(ODD)}\n"
        elif kind == 4:
            lines = lines[: at + 1]
        else:
            data = bytearray("".join(lines).encode("utf-8", "surrogateescape")) or bytearray(b"\n")
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            lines = [data.decode("utf-8", "surrogateescape")]
        content = "".join(lines)
    return content.encode("utf-8", "surrogateescape")
