"""Two machines of two processes each, both of them this one, as torchrun starts them."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from repository import SMALL
from started_programs import Program

from semcorr.benchmark.scaling import find_free_port
from semcorr.core import ranks
from semcorr.core.ranks import ProcessWatch
from semcorr.evaluate import evaluate

pytestmark = pytest.mark.integration

NODES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.num_nodes=2"]
LOST = "Error: the connection to a process of this run on another machine may have been lost"

STRUCK = '''
"""A process that is killed in the middle of scoring, if it is RANK."""
import os, sys
from semcorr import evaluate
from semcorr.engine.module import CorrespondenceModule

inner = CorrespondenceModule.test_step

def struck(self, batch):
    if os.environ["RANK"] == "3":
        print("struck", flush=True)
        os.kill(os.getpid(), 9)
    return inner(self, batch)

CorrespondenceModule.test_step = struck
sys.exit(evaluate.main(sys.argv[1:]))
'''


def nodes(folder: Path, *line: str) -> list[Program]:
    """Both torchruns, the first of which is where all meet."""
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(find_free_port())]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", *meeting]
    return [
        Program(*torchrun, "--node-rank", str(rank), *line, *NODES, cwd=folder, OMP_NUM_THREADS="1")
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_machines_give_the_digits_of_one_process(creatures, tiny, tmp_path, config):
    data = [each for each in tiny if each != "trainer=cpu"]
    started = nodes(tmp_path, "-m", "semcorr.evaluate", *data, "trainer.precision=32-true", "run_dir=four")

    alone = evaluate(config("evaluate", *tiny, f"run_dir={tmp_path / 'one'}"))
    codes = [program.end() for program in started]

    assert codes == [0, 0], started[0].printed["err"] + started[1].printed["err"]
    four = json.loads((tmp_path / "four" / "metrics.json").read_text())
    assert four.pop("seconds")
    assert alone.pop("seconds")
    assert four == json.loads(json.dumps(alone))


@pytest.mark.slow
def test_a_machine_learns_that_a_process_of_another_was_killed(creatures, tmp_path):
    """Nobody there sees it, but the connection to it: a sentence, within a minute, and no traceback of ours."""
    (tmp_path / "struck.py").write_text(STRUCK)
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny"]
    first, second = nodes(tmp_path, "struck.py", *line, "trainer.precision=32-true", "run_dir=run")
    second.wait_for("struck")
    began = time.monotonic()

    assert [first.end(), second.end()] == [1, 1]
    assert time.monotonic() - began < 120
    assert re.search(f"^{LOST}", first.printed["err"], re.MULTILINE), first.printed["err"]
    assert "/semcorr/" not in first.printed["err"] + second.printed["err"]  # of a file in a traceback
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("local", "is_lost"), [("2", True), ("4", False), (None, False)])
def test_a_connection_is_lost_to_another_machine_only_where_there_is_one(monkeypatch, local, is_lost):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    watch = ProcessWatch([], print, parent=os.getppid())

    for text in (
        "[gloo] Connection closed by peer",
        "NCCL error in: x.cpp:94, Duplicate GPU detected",
    ):  # one is local
        lost = watch.explain(RuntimeError(f"\n{text}\nIts second line"), seconds=0)
        assert (str(lost) == f"{ranks.OTHER_MACHINE}: {text}") if is_lost else (lost is None)
    assert watch.explain(RuntimeError("shape mismatch"), seconds=0) is None
