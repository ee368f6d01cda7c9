"""Limits of a machine are told in a sentence, and no process of a run waits for one that has gone."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from patch_backbone import Patches
from repository import SMALL
from started_programs import Program
from torch.utils.data import DataLoader, Dataset

from semcorr.cli.errors import report_user_errors
from semcorr.core.errors import UserError
from semcorr.core.limits import explain_limit
from semcorr.core.ranks import LAUNCH_VARIABLES, LostProcessError, ProcessWatch, is_first_process
from semcorr.data.loaders import BatchSize, LoaderPlan, count_cores, plan_loading, require_workers
from semcorr.data.synthetic import Synthetic
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.trainer_options import PROCESSES, check_processes
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax
from semcorr.models.heads.cosine import Cosine


@pytest.mark.parametrize("workers", [-1, 10**6, 1.5, "two", True])
def test_loader_processes_that_cannot_be_are_refused(workers):
    most = max(128, 4 * count_cores())
    with pytest.raises(UserError, match=f"`data.workers` must be null or a whole number .* to {most}, got {workers}"):
        require_workers(workers)


def test_workers_are_refused_before_anything_is_read(config, tiny):
    with pytest.raises(UserError, match=r"`data.workers` must be .*, got -1"):
        evaluate(config("evaluate", *tiny, "data.workers=-1", "data.root=nowhere"))


def of_shared_memory(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(free))


BYTES = 8 * 3 * 100 * 100  # of 8 images of 100 pixels a side


@pytest.mark.parametrize("value_bytes", [1, 4])  # as decoded, and floats
def test_loader_processes_need_room_in_shared_memory(monkeypatch, value_bytes):
    """Two batches ahead of each of 4, or one, and the one in use."""
    size, batch = BatchSize(8, 100, value_bytes), BYTES * value_bytes

    for typed in (True, False):
        for batches, expected in ((9, 2), (8, 1), (5, 1)):
            of_shared_memory(monkeypatch, batches * batch)
            assert plan_loading(size, 4, typed) == LoaderPlan(4, expected)

    of_shared_memory(monkeypatch, 5 * batch - 1)
    with pytest.raises(UserError, match=r"`data.workers`: 4 loader processes pass 0.00 GB .*data.workers=0: none"):
        plan_loading(size, 4, typed=True)
    assert plan_loading(size, 0, typed=True) == LoaderPlan(0, None)


def test_fewer_loader_processes_are_used_where_their_number_was_not_typed(monkeypatch, caplog):
    """What Docker gives, 64 MiB, holds four batches of 8 images at 840 pixels: one in use, three ahead."""
    of_shared_memory(monkeypatch, 64 * 2**20)
    size = BatchSize(8, 840)

    for _ in range(2):
        assert plan_loading(size, 16, typed=False) == LoaderPlan(2, 1)
    assert caplog.messages == [
        "2 of 16 loader processes load: 0.07 GB of shared memory are free (/dev/shm) for batches of 0.017 GB. Enlarge "
        "it (docker run --shm-size), or lower data.encode_batch or data.batch_size"
    ]
    assert plan_loading(size, 16, typed=False, processes=2) == LoaderPlan(0, None)
    assert plan_loading(size._replace(value_bytes=4), 16, typed=False) == LoaderPlan(0, None)
    assert caplog.messages[-1].startswith("none of 16 loader processes load")


@pytest.mark.parametrize("local", [None, "8"])  # SLURM says nothing there, torchrun does
def test_processes_of_other_machines_take_nothing_of_this_one(monkeypatch, local):
    """Caches of features and loader processes share what a machine has in the same way: by Lightning's count."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    module = CorrespondenceModule(Patches(), Cosine(), localise=argmax, finetune=lambda backbone: None)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(world_size=8, global_rank=5, num_devices=4, strategy=strategy)
    data = Synthetic(root=".", size=32)
    data.trainer = module._trainer

    assert (module._group.rank, module._group.size, module._group.local) == (5, 8, 4)
    assert data._local_processes() == 4


MOST = max(PROCESSES, os.cpu_count() or 1)


@pytest.mark.parametrize("devices", [0, -1, -2, MOST + 1, 10**6, "two", 1.5, [0, 1]])
def test_devices_that_there_are_not_are_refused(devices):
    cfg = OmegaConf.create({"accelerator": "cpu", "devices": devices, "num_nodes": 1})
    output = f"`trainer.devices` must be auto or a number from 1 to {MOST} processes of a CPU, got {devices}"
    with pytest.raises(UserError, match=re.escape(output)):
        check_processes(cfg)


@pytest.mark.parametrize(
    ("devices", "right"), [(1, True), (2, True), ("1", True), ([0, 1], True), ("0,1", True), (-1, True), ("auto", True),
                           (3, False), ([0, 2], False), ([0, 0], False), (0, False)]
)  # fmt: skip
def test_gpus_are_counted(monkeypatch, devices, right):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = OmegaConf.create({"accelerator": "gpu", "devices": devices, "num_nodes": 1})
    if right:
        check_processes(cfg)
    else:
        with pytest.raises(UserError, match=r"`trainer\.devices` must be auto or a number of the 2 GPUs here"):
            check_processes(cfg)


@pytest.mark.parametrize("nodes", [0, -1, "two", 2])
def test_nodes_that_are_not_started_are_refused(monkeypatch, nodes):
    for name in ("MASTER_ADDR", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"`trainer\.num_nodes`"):
        check_processes(OmegaConf.create({"accelerator": "cpu", "devices": 1, "num_nodes": nodes}))


def test_a_command_that_others_have_started_in_another_number_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(OmegaConf.create({"accelerator": "cpu", "devices": 2}))
    with pytest.raises(UserError, match="torchrun has started 2 processes, got 1 on 1 nodes"):
        check_processes(OmegaConf.create({"accelerator": "cpu", "devices": 1}))


def of_number(number: int, *name: str) -> OSError:
    return OSError(number, os.strerror(number), *name)


@pytest.mark.parametrize(
    ("error", "output"),
    [
        (of_number(errno.ENOSPC, "runs/x"), "runs/x cannot be written (No space left on device). Free some space"),
        (of_number(errno.ENOSPC), "a file cannot be written (No space left on device). Free some space"),
        (of_number(errno.EACCES, "runs/x"), "runs/x: Permission denied. See to its permissions"),
        (of_number(errno.EROFS, "runs/x"), "runs/x: Read-only file system. See to its permissions"),
        (of_number(errno.EMFILE, "a.png"), "too many files are open at once (the limit is"),
        (of_number(errno.ENOMEM), "there is not enough memory. Lower `data.encode_batch`"),
        (of_number(errno.EAGAIN), "the system allows no more processes or threads. Lower `data.workers`"),
        (OSError("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 13] Permission denied: 'a.png'"),
         "a.png: Permission denied"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "the system allows no more processes or threads"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
         "the loader processes have run out of shared memory (/dev/shm). Give data.workers=0"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
         "the loader processes have run out of shared memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU has run out of memory"),
    ],
)  # fmt: skip
def test_what_a_machine_cannot_do_is_a_user_error(error, output):
    assert (explain_limit(error) or "").startswith(output)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "a"), ValueError("a"), RuntimeError("shape mismatch"), KeyError("a")]
)
def test_a_defect_is_not_explained_as_a_limit(error):
    assert explain_limit(error) is None


def test_memory_that_there_is_not_is_reported_as_pytorch_has_it():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 59, dtype=torch.uint8)
    assert (explain_limit(error.value) or "").startswith("there is not enough memory")


class Dying(Dataset):
    """Its loader process is killed, as where memory is short."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return i


def test_a_loader_process_that_is_killed_is_a_user_error():
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(Dying(), num_workers=1))
    assert (explain_limit(error.value) or "").startswith("a loader process was killed, as the system does when memory")


FEW = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (32, int(sys.argv[1])))
from semcorr.cli.errors import report_user_errors
from semcorr.core.limits import raise_open_files
raise_open_files()
with report_user_errors("evaluate"):
    files = [open("/dev/null") for _ in range(100)]
"""


@pytest.mark.parametrize(("hard", "code"), [(256, 0), (64, 2)])
def test_as_many_files_are_opened_as_the_system_allows(hard, code):
    done = subprocess.run([sys.executable, "-c", FEW, str(hard)], capture_output=True, text=True, check=False)

    assert done.returncode == code
    message = "Error: too many files are open at once (the limit is 64). Raise the limit (ulimit -n 4096), or lower"
    assert done.stderr.startswith(message if code else "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "output", "code"),
    [
        ("os.kill(os.getpid(), 9)", r"process 2 of 3 \(pid \d+\) was killed \(SIGKILL\); the others were ended", 1),
        ("sys.exit(2)", "", 2),  # it has said why
        ("sys.exit(1)", r"process 2 of 3 \(pid \d+\) failed with exit code 1; the others were ended", 1),
    ],
)
def test_the_first_process_ends_when_another_has_gone(ends, output, code):
    message: list[tuple[str, int]] = []
    waits = "import time; time.sleep(3600)"
    children = [subprocess.Popen([sys.executable, "-c", each]) for each in (waits, f"import os, sys; {ends}")]
    watch = ProcessWatch(children, lambda text, number: message.append((text, number)))
    watch.start()
    watch.join(60)
    watch.kill()

    assert re.match(output, message[0][0])
    assert message[0][1] == code
    assert children[0].returncode == -signal.SIGKILL


def test_processes_whose_work_is_done_are_waited_for():
    message: list[str] = []
    children = [subprocess.Popen([sys.executable, "-c", "pass"])]
    watch = ProcessWatch(children, lambda text, number: message.append(text))
    watch.start()
    watch.close()

    assert children[0].returncode == 0
    assert watch.find_lost() is None
    assert not message


def test_a_process_notices_that_the_one_that_started_it_has_gone(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ProcessWatch([], print, parent=os.getppid()).find_lost() is None
    lost = ProcessWatch([], print, parent=1 << 22).find_lost()
    assert isinstance(lost, LostProcessError)
    assert str(lost) == "the first process of this run has gone; the others were ended."


FAULTY = '''
"""Two processes, one of which is struck: PLACE WHAT RANK, and an ordinary command line."""
import functools, os, sys
from lightning.pytorch.strategies import DDPStrategy
import semcorr.engine.build
from semcorr import train
from semcorr.core.errors import UserError
from semcorr.store.frozen import FrozenPrefix
from semcorr.engine.module import CorrespondenceModule

place, what, rank = os.environ["FAULT"].split()
owner, name = {
    "build": (semcorr.engine.build, "build_datamodule_and_module"), "group": (DDPStrategy, "setup_environment"),
    "fit": (CorrespondenceModule, "training_step"), "encode": (FrozenPrefix, "compute"),
    "validation": (CorrespondenceModule, "on_validation_epoch_end"),
    "test": (CorrespondenceModule, "test_step"),
}[place]
inner = getattr(owner, name)

@functools.wraps(inner)
def struck(*args, **options):
    if os.environ.get("LOCAL_RANK", "0") == rank:
        print("struck", flush=True)
        if what == "killed":
            os.kill(os.getpid(), 9)
        raise UserError("a mistake") if what == "mistake" else ZeroDivisionError("a defect")
    return inner(*args, **options)

setattr(owner, name, struck)
sys.exit(train.main(sys.argv[1:]))
'''
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
KILLED = "Error: process 1 of 2 .* was killed .SIGKILL.; the others were ended."
CASES = {
    "fit killed 1": (1, KILLED), "encode killed 1": (1, KILLED), "validation killed 1": (1, KILLED),
    "test killed 1": (1, KILLED), "fit killed 0": (-9, "Error: the first process of this run has gone; the others"),
    "build mistake 1": (2, "Error: a mistake$"), "group mistake 0": (2, "Error: a mistake$"),
    "fit mistake 1": (2, "Error: a mistake$"), "test mistake 0": (2, "Error: a mistake$"),
    "group defect 1": (1, "Error: process 1 of 2 .* failed with exit code 1"),
    "fit defect 1": (1, "Error: process 1 of 2 .* failed with exit code 1"),
    "fit defect 0": (1, r"(\[rank0\]: )?ZeroDivisionError"),  # PyTorch may say whose it is
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", CASES)
def test_no_process_waits_for_one_that_has_gone(creatures, tmp_path, fault):
    """Within 30 seconds, or 60 on a machine that others use; nothing runs on, and one sentence says it."""
    code, output = CASES[fault]
    (tmp_path / "faulty.py").write_text(FAULTY)
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny", *TWO]
    quick = ["finetune.blocks=1", "data.steps=2", "data.batch_size=2", "trainer.max_epochs=1", "run_dir=run"]
    program = Program(tmp_path / "faulty.py", *line, *quick, cwd=tmp_path, FAULT=fault)
    program.wait_for("struck")
    began = time.monotonic()

    assert program.end() == code
    assert time.monotonic() - began < 60
    messages = [each for each in program.printed["err"].splitlines() if re.match(output, each)]
    assert len(messages) == 1, program.printed["err"]
    assert program.printed["err"].count("Traceback") == (1 if "defect" in fault else 0)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_the_other_process_of_a_verb_of_semcorr_has_the_same_line(creatures, tmp_path, sweep):
    """Lightning starts it by the words of the first one, of which `evaluate` is one."""
    data = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny"]
    line = ["-m", "semcorr", "evaluate", *data, *TWO, "run_dir=run", *sweep]
    done = subprocess.run([sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("run/**/metrics.json")]) == 1


@pytest.mark.parametrize("name", LAUNCH_VARIABLES)
def test_a_number_of_a_launcher_is_one_or_unset(monkeypatch, capfd, name):
    monkeypatch.setenv(name, "")
    with report_user_errors("evaluate"):
        assert name not in os.environ  # Lightning reads them as well
    assert is_first_process()

    monkeypatch.setenv(name, "x")
    with pytest.raises(SystemExit) as stop, report_user_errors("evaluate"):
        raise AssertionError("nothing is run")
    assert stop.value.code == 2
    assert capfd.readouterr().err == (
        f"Error: the environment variable {name} must be a whole number, as torchrun and SLURM set it, got 'x'. "
        "Unset it\n"
    )
