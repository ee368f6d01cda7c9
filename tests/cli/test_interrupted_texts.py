"""Every command ends with the code of a signal, and what it says of files is true."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT
from started_programs import Program

from semcorr.cli.errors import report_user_errors
from semcorr.cli.store import _describe_removal
from semcorr.core.files import atomic_output_dir, write_text
from semcorr.store import __main__ as verb
from semcorr.store.index import StoreEntry


def interrupted(work: Callable[[], None]) -> int:
    """The exit code of a command whose work Ctrl-C ends."""
    try:
        with report_user_errors("evaluate"):
            work()
            raise KeyboardInterrupt
    except SystemExit as stop:
        return int(stop.code or 0)


def two_files(out: Path) -> None:
    with atomic_output_dir(out) as folder:
        for name in "ab":
            (folder / name).write_text(name)


def test_before_anything_is_in_its_place_nothing_is_written(tmp_path, capfd):
    def work() -> None:
        with atomic_output_dir(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise KeyboardInterrupt

    assert interrupted(work) == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was written. Run the same line again\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("place", ["semcorr.core.interrupt.Guard.__init__", "semcorr.core.interrupt.Guard.install"])
def test_a_signal_before_the_guard_is_in_place_is_no_traceback(monkeypatch, capfd, place):
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)

    assert interrupted(lambda: None) == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was written. Run the same line again\n"


def test_in_the_midst_of_several_files_those_that_are_there_are_reported(tmp_path, capfd, monkeypatch):
    own = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return own(self, target)

    monkeypatch.setattr(Path, "replace", replace)

    assert interrupted(lambda: two_files(tmp_path / "out")) == 130
    message = f"{tmp_path}/out/a is written. Run the same line again for what is not\n"
    assert capfd.readouterr().err == f"Interrupted. {message}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_after_the_last_file_all_are_reported_and_not_those_of_another_command(tmp_path, capfd):
    write_text(tmp_path / "before", "of another")

    assert interrupted(lambda: two_files(tmp_path / "out")) == 130
    message = f"{tmp_path}/out/b and 1 other files are written. Run the same line again for what is not\n"
    assert capfd.readouterr().err == f"Interrupted. {message}"


def test_a_file_that_a_thread_has_written_is_reported(tmp_path, capfd):
    def work() -> None:
        thread = threading.Thread(target=write_text, args=(tmp_path / "a", "of a worker"))
        thread.start()
        thread.join()

    assert interrupted(work) == 130
    message = f"{tmp_path}/a is written. Run the same line again for what is not\n"
    assert capfd.readouterr().err == f"Interrupted. {message}"


def test_a_command_does_not_tell_the_files_of_the_one_before(tmp_path, capfd):
    interrupted(lambda: write_text(tmp_path / "a", "of the first"))
    capfd.readouterr()

    assert interrupted(lambda: None) == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was written. Run the same line again\n"


def test_a_file_that_went_again_is_not_reported(tmp_path, capfd):
    def work() -> None:
        write_text(tmp_path / "temporary", "x")
        (tmp_path / "temporary").unlink()

    assert interrupted(work) == 130
    assert "Nothing was written" in capfd.readouterr().err


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_an_interrupted_prune_counts_what_went(tmp_path, gone):
    entries = [StoreEntry(tmp_path / name, 1, 0.0) for name in "abc"]
    for entry in entries[gone:]:
        entry.path.touch()

    message = f"{gone} of 3 images' features that were to go are removed" if gone else "Nothing was removed"
    assert _describe_removal(entries) == f"{message}. Run the same line again"


@pytest.mark.parametrize("line", ["verify", "prune --all"])
def test_the_store_says_so_of_both(tmp_path, monkeypatch, capfd, line):
    def opened(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.cli.store._open_store", opened)
    code = verb.main([*line.split(), "--root", str(tmp_path)])

    assert code == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was removed. Run the same line again\n"


HELD = {  # a verb, its line, and where it is held up
    "match": ("a.png a.png", "semcorr.inference.Matcher.load"),
    "transfer": ("known.json . --format coco", "semcorr.inference.transfer.annotations.read_annotations"),
    "export": ("RUN", "semcorr.engine.rebuild.read_trained_config"),
    "search": ("layers backbone=tiny", "semcorr.search.run_search"),
    "audit": ("RUN", "semcorr.audit.audit_run"),
    "compare": ("A B", "semcorr.engine.finished_run.read_evaluated_run"),
    "report": ("A", "semcorr.report.command.find_runs"),
    "store": ("ls", "semcorr.cli.store._open_store"),
    "benchmark": ("match", "semcorr.benchmark.report.read_benchmark_file"),
    "prepare": ("spair", "semcorr.prepare._prepare_benchmark"),
    "app": ("", "semcorr.app.command.bind_socket"),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", HELD)
def test_every_verb_ends_with_the_code_of_a_signal(tmp_path, verb, number):
    line, place = HELD[verb]
    (tmp_path / "a.png").write_bytes((ROOT / "docs" / "matches.jpg").read_bytes())
    module, _, name = place.rpartition(".")
    owner, _, kind = module.rpartition(".") if module.endswith("Matcher") else (module, "", "")
    held = (
        "import importlib, sys, time, types\nfrom importlib.util import find_spec as found\n"
        "import importlib.util\nimportlib.util.find_spec = lambda n, *a: found(n, *a) or ("
        "types.SimpleNamespace(origin='here') if n == 'gradio' else None)\n"
        f"owner = importlib.import_module('{owner}')\nowner = getattr(owner, '{kind}') if '{kind}' else owner\n"
        f"setattr(owner, '{name}', lambda *a, **k: (print('ready', flush=True), time.sleep(3600)))\n"
        f"sys.argv = ['semcorr', '{verb}', *'{line}'.split()]\n"
        "from semcorr.__main__ import main\nsys.exit(main())\n"
    )
    program = Program("-c", held, cwd=tmp_path)
    program.wait_for("ready")
    program.send(number)

    assert program.end() == 128 + number
    assert program.printed["err"].startswith(f"Interrupted ({number.name}). ")
    assert program.printed["err"].count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}
