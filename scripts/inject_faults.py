"""Kill commands at random moments, run them on too small disks and two at once; compare with undisturbed runs.

    python scripts/inject_faults.py --moments 20 --out faults.json

Commands work on synthetic data with a random network of four blocks. A trial is a process of its own, forked from this
one to save the imports. After a fault the same command is run again (training resumes by checkpoint=), and the files it
leaves must equal those of an undisturbed run, byte by byte except for recorded times.

Linux only; small disks (tmpfs) need root, and are counted as not run without it.
"""

import argparse
import atexit
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

EXIT = {"TERM": 143, "INT": 130, "KILL": 137}
LIMIT = 300.0  # seconds that a command may take
SIZES = (0.5, 1.0, 2.0, 3.0, 5.0)  # MB of small disks
CLOCKS = {"seconds", "code"}  # keys of JSON files that differ between runs: times, and versions of the code
WANDB = ("wandb-media", "wandb-artifacts")  # empty folders of a library that timm imports, left when it is killed
NO_BYTES = {".lock"}  # holds the process and its start time
TINY = ["data=synthetic", "data.root=data", "data.train=3", "data.val=2", "data.test=3", "data.pixels=96"]
TINY += ["data.workers=0", "backbone=tiny", "trainer=cpu"]
TRAIN = [*TINY, "data.steps=4", "data.batch_size=2", "trainer.max_epochs=3", "finetune.blocks=1"]
OUT = "run_dir=disk/out"


@dataclass(frozen=True)
class Command:
    """A command that reads the files of `make_template` and writes below `disk`, where `copies` are placed first."""

    name: str
    line: Sequence[str]
    copies: Sequence[str] = ()
    timed: bool = False  # results are times, so that only the names of files are compared
    jobs: int = 1  # jobs of a sweep, each of which may fail with an error message
    notes: Sequence[str] = ()  # names of files that report failures until the job is run again


@dataclass
class Ended:
    """The end of a command: exit code, messages, time and surviving processes."""

    code: int
    stderr: str
    seconds: float
    orphans: int


COMMANDS = [
    Command("train", ["train", *TRAIN, OUT]),
    Command("evaluate", ["evaluate", *TINY, "store=disk", "store.root=disk/store", OUT]),
    Command("sweep", ["train", "-m", *TRAIN, "trainer.max_epochs=1", "seed=1,2,3,4", OUT], jobs=4, notes=["error.txt"]),
    Command("match", ["match", "pictures/a.jpg", "pictures", "--model", "tiny", "--dense", "--out", "disk/out"]),
    Command("transfer", ["transfer", "labels.json", "pictures", "--model", "tiny", "--out", "disk/out.json"]),
    Command("export", ["export", "disk/run"], ["run"]),
    Command("audit", ["audit", "disk/run"], ["run"]),
    Command("compare", ["compare", "runs/a", "runs/b"]),
    Command("report", ["report", "runs/a", "runs/b", "--no-seconds", "--out", "disk/out"]),
    Command(
        "prepare",
        ["prepare", "pf_willow", "--archive", "PF-dataset.zip", "--archive", "test_pairs.csv", "--root", "disk/out"],
    ),
    Command("store verify", ["store", "verify", "--root", "disk/store"], ["store"]),
    Command("store prune", ["store", "prune", "--all", "--root", "disk/store"], ["store"]),
    Command("benchmark", ["benchmark", "conv4d", "--side", "6", "--together", "--out", "disk/out.json"], timed=True),
]

PAIRS = [  # started together in one directory: one of the two must finish undisturbed, the other must be refused
    (["train", *TRAIN, "seed=1", OUT], ["train", *TRAIN, "seed=2", OUT]),
    (["train", *TRAIN, "head=bottleneck", OUT], ["train", *TRAIN, OUT]),
    (["train", *TRAIN, "finetune=lora", OUT], ["train", *TRAIN, "finetune=frozen", OUT]),
    (["train", *TRAIN, "seed=3", OUT], ["evaluate", *TINY, "seed=3", OUT]),
    (["evaluate", *TINY, "localise=argmax", OUT], ["evaluate", *TINY, "localise=soft_argmax", OUT]),
    (["evaluate", *TINY, "seed=1", OUT], ["evaluate", *TINY, "seed=2", OUT]),
    (["evaluate", *TINY, "protocol=geoaware", OUT], ["train", *TRAIN, OUT]),
    (["train", "-m", *TRAIN, "seed=1,2", OUT], ["train", "-m", *TRAIN, "seed=3,4", OUT]),
    (["evaluate", "-m", *TINY, "seed=1,2", OUT], ["evaluate", "-m", *TINY, "seed=1,2", OUT]),
    (["train", *TRAIN, "data.batch_size=3", OUT], ["train", *TRAIN, "data.batch_size=4", OUT]),
]


def main() -> None:
    """Run the trials of the command line, print a table and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20, help="kills of each command by each signal")
    parser.add_argument("--signals", nargs="*", default=list(EXIT), choices=list(EXIT))
    parser.add_argument("--commands", nargs="*", default=[command.name for command in COMMANDS])
    parser.add_argument("--no-disks", action="store_true", help="no small disks")
    parser.add_argument("--no-pairs", action="store_true", help="no two commands at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    typed = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory(prefix="semcorr-faults-") as folder:
        harness = Harness(Path(folder), random.Random(typed.seed))
        commands = [command for command in COMMANDS if command.name in typed.commands]
        rows = {command.name: harness.try_command(command, typed) for command in track(commands, "Commands")}
        if not typed.no_pairs:
            rows["pairs"] = harness.try_pairs()
    print_table(rows)
    typed.out.write_text(json.dumps({"rows": rows, "faults": harness.faults}, indent=1) + "\n")
    sys.exit(1 if harness.faults else 0)


class Harness:
    """Runs trials in a work folder and records the faults they find."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.template, self.work, self.chance = folder / "template", folder / "work", chance
        self.temporary = Path(tempfile.mkdtemp(prefix="semcorr-faults-", dir="/dev/shm"))  # another file system
        atexit.register(shutil.rmtree, self.temporary, ignore_errors=True)
        self.faults: list[str] = []
        self.make_template()

    def try_command(self, command: Command, typed: argparse.Namespace) -> dict[str, int]:
        """Run the trials of a command and count their outcomes."""
        counts: Counter[str] = Counter()
        self.reset(command)
        undisturbed = self.run(command.line)
        reference = snapshot(self.work / "disk", command.timed)
        counts["exit code"] = undisturbed.code
        if undisturbed.code not in (0, 1):
            self.faults.append(
                f"{command.name}: undisturbed it ends with {undisturbed.code}: {undisturbed.stderr[-500:]}"
            )
            return dict(counts)
        for name in typed.signals:
            previous = counts["finished first"]
            for i in range(typed.moments):
                delay = (i + self.chance.random()) / typed.moments * undisturbed.seconds
                self.try_kill(command, name, delay, undisturbed.code, reference, counts)
            if counts["finished first"] - previous == typed.moments > 1:
                self.report_fault(command.name, f"no {name} came in time")
        if not typed.no_disks:
            for size in SIZES:
                self.try_disk(command, size, undisturbed.code, reference, counts)
        return dict(counts)

    def try_kill(
        self, command: Command, name: str, delay: float, code: int, reference: Mapping[str, str], counts: Counter[str]
    ) -> None:
        """Kill a command after a while, check the files it left, run it again and compare.

        Args:
            command: The command.
            name: Name of the signal, a key of `EXIT`.
            delay: Seconds from the start of the command to the signal.
            code: Exit code of an undisturbed run.
            reference: Digests of the files of an undisturbed run.
            counts: Outcomes so far, which are added to.
        """
        what = f"{command.name}, {name} after {delay:.2f} s"
        self.reset(command)
        before = set(snapshot(self.work / "disk", command.timed))
        ended = self.run(command.line, signal.Signals[f"SIG{name}"], delay)
        counts[name] += 1
        if ended.code == code and ended.code != EXIT[name]:
            counts["finished first"] += 1
        elif ended.code != EXIT[name]:
            self.report_fault(what, f"exit code {ended.code}, not {EXIT[name]}: {ended.stderr[-300:]}")
        leftovers = set(snapshot(self.work / "disk", command.timed)) - before - set(reference)
        if name != "KILL" and (leftovers or any(self.temporary.iterdir())):
            self.report_fault(what, f"left {sorted(leftovers)} {[path.name for path in self.temporary.iterdir()]}")
        if "Traceback" in ended.stderr:
            self.report_fault(what, f"a traceback: {ended.stderr[-600:]}")
        self.check_after(what, command, ended, code, reference, counts)

    def try_disk(
        self, command: Command, size: float, code: int, reference: Mapping[str, str], counts: Counter[str]
    ) -> None:
        """Run a command on a small disk, enlarge the disk, run it again and compare.

        Args:
            command: The command.
            size: Size of the disk in MB, beside the files that the command reads there.
            code: Exit code of an undisturbed run.
            reference: Digests of the files of an undisturbed run.
            counts: Outcomes so far, which are added to.
        """
        what = f"{command.name} on {size} MB"
        self.reset()
        disk = self.work / "disk"
        inputs = sum(
            path.stat().st_size + 4096 for name in command.copies for path in (self.template / name).rglob("*")
        )
        disk.mkdir()
        with mount_disk(disk, int(size * 1e6) + inputs) as is_mounted:
            if not is_mounted:
                counts["disks not run"] += 1
                return
            self.copy_inputs(command)
            before = set(snapshot(disk, command.timed))
            ended = self.run(command.line)
            counts["disks"] += 1
            counts["disks too small"] += ended.code == 2
            messages = ended.stderr.count("Error: ")  # a sweep prints one for each job
            if ended.code not in (2, code) or (ended.code == 2 and not 1 <= messages <= command.jobs):
                self.report_fault(what, f"exit code {ended.code}: {ended.stderr[-600:]}")
            leftovers = {name for name in snapshot(disk, command.timed) if Path(name).name not in command.notes}
            if leftovers := leftovers - before - set(reference):
                self.report_fault(what, f"left {sorted(leftovers)}")
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            self.check_after(what, command, ended, code, reference, counts)

    def check_after(
        self, what: str, command: Command, ended: Ended, code: int, reference: Mapping[str, str], counts: Counter[str]
    ) -> None:
        """Check that every file is intact, and that running the command again equals an undisturbed run."""
        disk = self.work / "disk"
        for path in disk.rglob("*"):
            if path.is_file() and not path.name.startswith(".") and (damage := damage_of(path)):
                self.report_fault(what, f"{path.relative_to(disk)} is not whole: {damage}")
        if ended.orphans:
            self.report_fault(what, f"{ended.orphans} processes lived on")
        if is_same(snapshot(disk, command.timed), reference) and ended.code != 2:
            return
        resume = ["checkpoint=disk/out"] if command.name == "train" and [*disk.glob("out/checkpoints/*.ckpt")] else []
        resumed = self.run([*command.line, *resume])
        result = snapshot(disk, command.timed)
        if command.jobs > 1:  # a job that has its scores is not run again for a picture that it reported missing
            undrawn = {
                name for name in reference if name not in result and f"{Path(name).name} is not drawn" in ended.stderr
            }
            reference = {name: digest for name, digest in reference.items() if name not in undrawn}
            counts["pictures not drawn"] += len(undrawn)
        if not is_same(result, reference):
            names = {*result} | {*reference}
            differing = sorted(name for name in names if result.get(name) != reference.get(name))
            self.report_fault(
                what, f"after going on ({resumed.code}) these differ: {differing} {resumed.stderr[-300:]}"
            )
        elif resumed.code != code:
            self.report_fault(what, f"going on ended with {resumed.code}: {resumed.stderr[-300:]}")
        leftovers = [path.name for path in self.temporary.iterdir() if not path.name.endswith(WANDB)]
        if leftovers:
            self.report_fault(what, f"left in TMPDIR after going on: {leftovers}")

    def try_pairs(self) -> dict[str, int]:
        """Start two commands at once in one directory."""
        counts: Counter[str] = Counter()
        for lines in PAIRS:
            references = []
            for line in lines:
                self.reset()
                references.append((self.run(line).code, snapshot(self.work / "disk")))
            self.reset()
            processes = [self.start(line, f"{i}") for i, line in enumerate(lines)]
            ends = [self.wait(pid, f"{i}") for i, pid in enumerate(processes)]
            result = snapshot(self.work / "disk")
            winners = [i for i, end in enumerate(ends) if end.code == 0]
            losers = [end for end in ends if end.code == 2 and end.stderr.count("Error: ") == 1]
            counts["pairs"] += 1
            if len(winners) == len(losers) == 1 and result == references[winners[0]][1]:
                counts["one refused"] += 1
            else:
                codes = [end.code for end in ends]
                same = [result == reference for _, reference in references]
                self.report_fault(
                    f"{lines[0][:2]} beside {lines[1][:2]}",
                    f"exit codes {codes}, as alone: {same}, {[end.stderr[-300:] for end in ends]}",
                )
        return dict(counts)

    def report_fault(self, what: str, problem: str) -> None:
        """Record a fault and print it."""
        self.faults.append(f"{what}: {problem}")
        print(self.faults[-1], flush=True)

    def reset(self, command: Command | None = None) -> None:
        """Restore the initial state of the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        for path in self.template.iterdir():
            (self.work / path.name).symlink_to(path)
        for path in self.temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if command:
            (self.work / "disk").mkdir()
            self.copy_inputs(command)

    def copy_inputs(self, command: Command) -> None:
        """Copy the inputs that the command changes."""
        for name in command.copies:
            shutil.copytree(self.template / name, self.work / "disk" / name)

    def run(self, line: Sequence[str], kill: signal.Signals | None = None, delay: float = 0.0) -> Ended:
        """Run a command to its end, or send it a signal after `delay` seconds."""
        pid = self.start(line)
        if kill is not None:
            time.sleep(delay)
            with suppress(ProcessLookupError):
                os.kill(pid, kill)
        return self.wait(pid)

    def start(self, line: Sequence[str], stream: str = "") -> int:
        """Fork a process that runs a command in the work folder."""
        ready, begin = os.pipe()
        pid = os.fork()
        if pid == 0:
            run_command(line, self.work, self.temporary, self.work.parent / f"stderr{stream}", begin)
        os.close(begin)
        os.read(ready, 1)
        os.close(ready)
        self.began = time.monotonic()
        return pid

    def wait(self, pid: int, stream: str = "") -> Ended:
        """Wait for a process, and for those that it started."""
        code: int | None = None
        while code is None and time.monotonic() - self.began < LIMIT:
            ended, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.005)
        seconds = time.monotonic() - self.began
        orphans = 0
        for _ in range(100):  # ten seconds for its subprocesses to end
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            orphans = 1
            os.killpg(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        code = -1 if code is None else code if code >= 0 else 128 - code
        return Ended(code, (self.work.parent / f"stderr{stream}").read_text(errors="replace"), seconds, orphans)

    def make_template(self) -> None:
        """Write synthetic data and make the runs that commands read."""
        from semcorr.data.synthetic import write_synthetic

        self.template.mkdir(parents=True)
        write_synthetic(self.template / "data", images={"trn": 3, "val": 2, "test": 3}, size=96)
        make_pictures(self.template)
        self.reset()
        (self.work / "disk").mkdir()
        lines = [
            ["train", *TRAIN, "run_dir=disk/run"],
            ["evaluate", *TINY, "store=disk", "store.root=disk/store", "localise=argmax", "run_dir=disk/runs/a"],
            ["evaluate", *TINY, "localise=soft_argmax", "run_dir=disk/runs/b"],
        ]
        for line in lines:
            ended = self.run(line)
            if ended.code:
                raise SystemExit(f"{line} ended with {ended.code}: {ended.stderr[-2000:]}")
        for name in ("run", "runs", "store"):
            shutil.move(self.work / "disk" / name, self.template / name)


def import_everything() -> None:
    """Import the modules of all commands once."""
    import timm  # noqa: F401
    import torch
    import torch._dynamo

    import semcorr.audit
    import semcorr.benchmark.command
    import semcorr.cli.store
    import semcorr.cli.sweep.table
    import semcorr.compare
    import semcorr.engine.build
    import semcorr.engine.scoring
    import semcorr.engine.trainer
    import semcorr.export
    import semcorr.inference
    import semcorr.match
    import semcorr.prepare
    import semcorr.report.command
    import semcorr.transfer  # noqa: F401

    torch.set_num_threads(1)  # a process with threads cannot be forked


def run_command(line: Sequence[str], folder: Path, temporary: Path, stderr: Path, begin: int) -> None:
    """Run a command in this process, which then exits; `begin` is closed when the command itself begins."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT["INT"]))  # what comes before the command is not its fault
        for stream, path in ((1, "/dev/null"), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
        sys.argv = ["semcorr", *line]
        atexit._clear()
        from semcorr.__main__ import main

        os.close(begin)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background processes
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


@contextmanager
def mount_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a small disk at a folder, and yield whether that was permitted."""
    process = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    try:
        yield process.returncode == 0
    finally:
        if process.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def snapshot(folder: Path, names_only: bool = False) -> dict[str, str]:
    """Digest every file below a folder, without recorded times."""
    return {
        str(path.relative_to(folder)): "" if names_only or path.name in NO_BYTES else digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_same(snapshot: Mapping[str, str], reference: Mapping[str, str]) -> bool:
    """Tell whether two snapshots are equal, except that the first may lack locks."""
    first, second = (
        {k: v for k, v in files.items() if Path(k).name not in NO_BYTES} for files in (snapshot, reference)
    )
    return first == second and not {*snapshot} - {*reference}


def digest(path: Path) -> str:
    """Hash the content of a file."""
    content = path.read_bytes()
    with suppress(ValueError):
        if path.suffix == ".json":
            content = json.dumps(remove_clocks(json.loads(content))).encode()
        elif path.name == "config.yaml":  # a commit during the trials changes this line
            content = b"\n".join(line for line in content.splitlines() if not line.startswith(b"  git:"))
        elif path.name == "metrics.csv":
            rows = csv.DictReader(io.StringIO(content.decode()))
            content = str([{k: v for k, v in row.items() if not k.startswith("cost/")} for row in rows]).encode()
    return hashlib.sha256(content).hexdigest()


def remove_clocks(node: object) -> object:
    """Leave out the keys that differ from run to run."""
    if isinstance(node, dict):
        return {key: remove_clocks(value) for key, value in node.items() if key not in CLOCKS}
    return [remove_clocks(value) for value in node] if isinstance(node, list) else node


def damage_of(path: Path) -> str | None:
    """Return why a file is not intact; None if it is."""
    import pyarrow.parquet as pq
    import torch

    from semcorr.data.open_image import open_image

    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".ckpt":
                torch.load(path, weights_only=True)
            case ".parquet":
                pq.read_table(path)
            case ".png" | ".jpg":
                with open_image(path) as image:
                    image.load()
            case ".csv" | ".yaml" | ".md" | ".html" | ".tex":
                if not path.read_text().endswith("\n"):
                    return "its last line has no end"
    except Exception as error:
        return repr(error)
    return None


def make_pictures(root: Path) -> None:
    """Write pictures, their annotations, and a small archive of PF-WILLOW."""
    from semcorr.data.open_image import open_image

    pictures = sorted((root / "data/JPEGImages/cat").glob("*.jpg"))[:4]
    (root / "pictures").mkdir()
    content: dict[str, list[object]] = {"images": [], "annotations": []}
    for i, path in enumerate(pictures):
        shutil.copy(path, root / f"pictures/{'abcd'[i]}.jpg")
        with open_image(path) as image:
            size = image.size
        content["images"].append({"id": i, "file_name": f"{'abcd'[i]}.jpg", "width": size[0], "height": size[1]})
        annotation = {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 80, 80]}
        content["annotations"].append(
            annotation | ({"keypoints": [20, 30, 2, 60, 40, 2], "num_keypoints": 2} if i < 2 else {})
        )
    content["categories"] = [{"id": 1, "name": "cat", "keypoints": ["nose", "tail"], "skeleton": []}]
    (root / "labels.json").write_text(json.dumps(content))
    header = ["imageA", "imageB", *(f"{axis}{side}{k}" for side in "AB" for axis in "XY" for k in range(10))]
    row = [f"PF-dataset/car(G)/{side}.png" for side in "ab"] + [str(10 + 7 * k % 70) for k in range(40)]
    (root / "test_pairs.csv").write_text(f"{','.join(header)}\n{','.join(row)}\n")
    with zipfile.ZipFile(root / "PF-dataset.zip", "w") as archive:
        for side, path in zip("ab", pictures, strict=False):
            archive.write(path, f"PF-dataset/car(G)/{side}.png")


def print_table(rows: Mapping[str, Mapping[str, int]]) -> None:
    """Print a row per command."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title="Trials")
    for header in ("", *columns):
        table.add_column(header, justify="right" if header else "left")
    for name, row in rows.items():
        table.add_row(name, *(str(row.get(key, "")) for key in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
