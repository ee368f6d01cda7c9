"""A program for test_stage_interrupted.py: install a benchmark, killed before every single change to the disk in turn.

Each attempt is a process of its own (a fork, which spares it the imports). After each kill the same
is done again to the end; printed are the number of kills and the differences, of which there must be none.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from tiny_archives import listing
from tiny_install import install_from

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_at(turn: int, work: Path) -> None:
    """From now on the `turn`-th change below `work` is not made: the process is gone before it."""
    left = turn

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if not (event in CHANGES or (writes and str(args[0]).startswith(str(work)))):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def forked(base: str, root: Path, turn: int | None) -> bool:
    """Whether an installation in a process of its own came to its end."""
    child = os.fork()
    if child == 0:
        if turn:
            killed_at(turn, root.parent)
        try:
            install_from(base, root)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


def main(base: str, work: Path) -> None:
    assert forked(base, work / "whole" / "root", None)
    whole = listing(work / "whole")
    assert whole
    for turn in count(1):
        folder = work / str(turn)
        came_to_its_end = forked(base, folder / "root", turn)
        forked(base, folder / "root", None)
        if listing(folder) != whole:
            print(f"killed at {turn}: {sorted(listing(folder).items() ^ whole.items())}")
        if came_to_its_end:
            print(f"{turn - 1} kills")
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
