"""A signal while a command is still importing what it needs: a sentence and its exit code, no traceback of Python."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from started_programs import take_signals

THIRD_PARTIES = ("hydra", "omegaconf", "typer")  # of which each command imports one at its top


def run_python(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python, which finds modules in a folder first."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    line = [sys.executable, *words]
    return subprocess.run(
        line, env=environment, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=take_signals
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", ["-m semcorr.train seed=1", "-m semcorr.match", "-m semcorr.report", "semcorr train"])
def test_a_signal_during_imports_is_a_sentence(tmp_path, words, number):
    """Also of the program `semcorr`, which pip writes as this file."""
    for name in THIRD_PARTIES:
        (tmp_path / f"{name}.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n")
    (tmp_path / "semcorr").write_text("import sys\nfrom semcorr.__main__ import main\nsys.exit(main())\n")

    done = run_python(tmp_path, *words.split())

    assert done.returncode == 128 + number
    assert done.stderr == f"Interrupted ({number.name}). Nothing was written. Run the same line again\n"
    assert run_python(tmp_path, *words.split(), LOCAL_RANK="1").stderr == ""  # one process says it


def test_a_library_leaves_the_signals_to_its_user_and_a_command_restores_them(tmp_path):
    """After its guard is gone nothing says that nothing was written."""
    shown = "print([signal.getsignal(number) is default for number, default in defaults.items()])\n"
    begins = "import signal\ndefaults = {number: signal.getsignal(number) for number in (2, 15)}\nimport semcorr\n"
    guards = "from semcorr.core.interrupt import guard_signals\nwith guard_signals():\n    " + shown
    for name, expected in (
        ("own.py", ["[True, True]", "[False, False]", "[True, True]"]),
        ("semcorr", ["[False, False]", "[False, False]", "[True, True]"]),
    ):
        (tmp_path / "programs").mkdir(exist_ok=True)
        (tmp_path / "programs" / name).write_text(begins + shown + guards + shown)
        done = run_python(tmp_path, f"programs/{name}")
        assert done.stdout.splitlines() == expected, done.stderr
