"""A signal ends a command within seconds: its exit code, a sentence on how to go on, nothing left."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from repository import SMALL
from started_programs import Program

from semcorr.core.interrupt import guard_signals

pytestmark = pytest.mark.integration

DOOR = """
import os, signal, subprocess, sys, tempfile, time
from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import run_app
"""
WAITS = (
    DOOR
    + """
with report_user_errors("evaluate"), tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    print("ready", flush=True)
    time.sleep(3600)
"""
)
STUCK = (
    DOOR
    + """
from semcorr.core import interrupt
interrupt.UNWIND_SECONDS = float(sys.argv[2])
folder = tempfile.TemporaryDirectory(dir=sys.argv[1])
with report_user_errors("evaluate"):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            print("swallowed", flush=True)
"""
)
NOHUP = (
    DOOR
    + """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with report_user_errors("evaluate"):
    os.kill(os.getpid(), signal.SIGHUP)
    print("still here", flush=True)
    time.sleep(3600)
"""
)
LEAVING = (
    DOOR
    + """
from types import SimpleNamespace
from semcorr.core.interrupt import current_guard, guard_signals
with report_user_errors("evaluate"):
    leaving = SimpleNamespace(f_code=type(guard_signals()).__exit__.__code__)
    current_guard().handle(signal.SIGINT, leaving)
    print("not yet", flush=True)
    exec(sys.argv[1])
"""
)
QUICK = ["data.steps=2", "data.batch_size=2", "finetune.blocks=1"]


@pytest.mark.parametrize("rest", ["time.sleep(60)", "pass", "raise SystemExit(0)", "raise KeyError(1)"])
def test_a_signal_between_a_block_and_its_end_is_not_lost(tmp_path, rest):
    """Raised while a `with` block is left it would be nobody's: it is raised a moment later, or when the block ends."""
    program = Program("-c", LEAVING, rest, cwd=tmp_path)

    assert program.end() == 130
    assert program.printed["out"] == "not yet\n"
    assert program.printed["err"].startswith("Interrupted (SIGINT)")
    assert len(program.printed["err"].splitlines()) == 1


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_with_its_code_and_one_sentence(tmp_path, name, code):
    program = Program("-c", WAITS, tmp_path)
    program.wait_for("ready")
    program.send(getattr(signal, name))

    assert program.end() == code
    assert program.printed["err"] == f"Interrupted ({name}). Nothing was written. Run the same line again\n"
    assert not list(tmp_path.iterdir())


def test_a_command_that_does_not_come_back_is_ended_all_the_same(tmp_path):
    """As one that waits in C for another process, or a library that takes every exception."""
    program = Program("-c", STUCK, tmp_path, 1.0)
    program.wait_for("ready")
    program.send(signal.SIGTERM)

    assert program.end() == 143
    assert program.printed["err"].startswith("Interrupted (SIGTERM). Nothing was written.")
    assert program.printed["err"].count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """The first one would be waited for an hour."""
    program = Program("-c", STUCK, tmp_path, 3600.0)
    program.wait_for("ready")
    program.send(signal.SIGINT)
    program.wait_for("swallowed")

    def sent_again() -> bool:
        program.send(signal.SIGINT)
        return "Interrupted" in program.printed["err"]

    program.wait_for(sent_again)
    assert program.end() == 130


SWALLOWED = """
class Loud:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

with report_user_errors("train"):
    Loud()
    time.sleep(3600)
"""


def test_a_signal_that_comes_while_an_object_is_removed_is_not_lost():
    """Python lets no error out of `__del__`: it prints that it was ignored, and goes on."""
    done = subprocess.run([sys.executable, "-c", DOOR + SWALLOWED], capture_output=True, text=True, timeout=100)

    assert done.returncode == 143
    assert done.stderr == "Interrupted (SIGTERM). Nothing was written. Run the same line again\n"


EARLY = """
import threading

def start(self, start=threading.Thread.start):
    os.kill(os.getpid(), signal.SIGTERM)
    start(self)

threading.Thread.start = start
with report_user_errors("train"):
    print("begun")
"""


def test_a_signal_that_comes_before_the_command_begins_ends_it_as_well():
    done = subprocess.run([sys.executable, "-c", DOOR + EARLY], capture_output=True, text=True, timeout=100)

    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "Interrupted (SIGTERM). Nothing was written. Run the same line again\n"


LATE = """
import threading

def join(self, timeout=None, join=threading.Thread.join):
    os.kill(os.getpid(), signal.SIGINT)
    join(self, timeout)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread.join = join
with report_user_errors("train"):
    print("done")
threading.Thread.join = join.__defaults__[1]
"""


def test_a_signal_that_comes_after_the_command_has_ended_is_too_late():
    done = subprocess.run([sys.executable, "-c", DOOR + LATE], capture_output=True, text=True, timeout=100)

    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_what_nohup_ignores_stays_ignored():
    program = Program("-c", NOHUP)
    program.wait_for("still here")
    program.send(signal.SIGTERM)

    assert program.end() == 143


def test_signals_are_taken_by_commands_alone_and_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with guard_signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        with guard_signals():
            pass
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    seen = []

    def elsewhere() -> None:
        with guard_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before[1]]


PRINTS = {
    "much": 'for _ in range(100_000): print("a line")',
    "little": 'print("a line")',
    "by_rich": "from rich.console import Console\n    for _ in range(100_000): Console().print('a line')",
    "by_typer": "import typer\n    app = typer.Typer()\n"
    "    app.command()(lambda: [print('a line') for _ in range(10**6)])\n    sys.exit(run_app(app, [], 'semcorr'))",
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("also_errors", [False, True])
@pytest.mark.parametrize("how", PRINTS)
def test_a_closed_pipe_ends_a_command_silently(tmp_path, how, also_errors):
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "err").open("w") as errors:
        program = [sys.executable, "-c", DOOR + 'with report_user_errors("evaluate"):\n    ' + PRINTS[how]]
        done = subprocess.run(program, stdout=writing, stderr=writing if also_errors else errors, check=False)
    os.close(writing)

    assert done.returncode == 141
    assert (tmp_path / "err").read_text() == ""


def test_a_connection_that_breaks_is_not_taken_for_a_pipe(capfd):
    program = DOOR + 'with report_user_errors("evaluate"):\n    raise BrokenPipeError(32, "of a socket")'
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_a_training_that_is_interrupted_says_what_it_has_and_goes_on(tiny, tmp_path):
    """Ctrl-C goes to the loader processes, too; nothing of it is heard of them."""
    run, line = tmp_path / "run", [*QUICK, *tiny, "data.workers=1", "augment=standard", "trainer.max_epochs=1000"]
    program = Program("-m", "semcorr.train", *line, f"run_dir={run}", cwd=tmp_path)
    program.wait_for((run / "checkpoints" / "last.ckpt").is_file)
    program.send(signal.SIGINT, group=True)

    assert program.end() == 130
    output = program.printed["err"].splitlines()[-1]
    assert output.startswith("Interrupted (SIGINT) in epoch ")
    assert f"of 1000. {run}/checkpoints/last.ckpt holds epoch " in output
    assert output.endswith(f". Go on with: python -m semcorr.train checkpoint={run}")
    assert "Traceback" not in program.printed["err"]
    assert {path.name for path in run.iterdir()} <= {"checkpoints", "config.yaml", "metrics.csv", ".lock"}


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_starts_no_other_job_and_none_has_failed(tiny, tmp_path):
    line = ["-m", "seed=1,2,3", *QUICK, *tiny, "run_dir=S"]
    program = Program("-m", "semcorr.train", *line, "trainer.max_epochs=2,1000", cwd=tmp_path)
    program.wait_for((tmp_path / "S" / "1" / "config.yaml").is_file)  # the second job of six
    program.send(signal.SIGTERM)

    assert program.end() == 143
    output = program.printed["err"]
    assert "Interrupted (SIGTERM). 1 of 6 jobs are done. The same line with run_dir=S goes on\n" in output
    assert "Traceback" not in output
    assert "failed" not in output
    assert json.loads((tmp_path / "S" / "0" / "metrics.json").read_text())["pairs"]
    assert not list(tmp_path.glob("S/*/error.txt"))
    assert not (tmp_path / "S" / "2" / "config.yaml").exists()


CONVERTS = """
import os, signal, sys, time
from semcorr import evaluate
from semcorr.engine import build as engine_build

def build(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException:
        raise ValueError("torn")

engine_build.build_datamodule_and_module = build
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_job_that_makes_another_error_of_the_signal_has_not_failed(tiny, tmp_path):
    (tmp_path / "converts.py").write_text(CONVERTS)
    program = Program(tmp_path / "converts.py", "-m", "seed=1,2", *tiny, "run_dir=S", cwd=tmp_path)

    assert program.end() == 143
    assert (
        "Interrupted (SIGTERM). 0 of 2 jobs are done. The same line with run_dir=S goes on\n" in program.printed["err"]
    )
    assert not list(tmp_path.glob("S/*/error.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_evaluation_that_is_interrupted_leaves_its_features_in_the_store(creatures, tmp_path, name):
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "backbone=tiny", "trainer=cpu", "data.workers=1"]
    store = ["store=disk", f"store.root={tmp_path / 'store'}"]
    held = tmp_path / "held.py"  # encodes three images and then waits
    held.write_text(
        "import sys, time\nfrom semcorr import evaluate\nfrom semcorr.store.frozen import FrozenPrefix\n"
        "compute, count = FrozenPrefix.compute, []\n"
        "def slow(self, image):\n    count.append(1)\n    if len(count) > 3:\n        print('ready', flush=True)\n"
        "        time.sleep(3600)\n    return compute(self, image)\nFrozenPrefix.compute = slow\n"
        "sys.exit(evaluate.main(sys.argv[1:]))\n"
    )
    program = Program(held, *line, *store, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    program.wait_for("ready")
    program.send(getattr(signal, name), group=True)

    assert program.end() == (143 if name == "SIGTERM" else 130)
    message = f"No scores were written. Features that were computed are in the store {tmp_path / 'store'}."
    assert program.printed["err"].endswith(f"Interrupted ({name}). {message} Run the same line again\n")
    assert "Traceback" not in program.printed["err"]
    assert len(list((tmp_path / "store").glob("*/*.safetensors"))) == 3
    assert not (tmp_path / "run").exists()
