"""Messages for limits of the machine: open files, memory, shared memory, disks and permissions."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from semcorr.core.files import REASONS

SHARED_MEMORY = Path("/dev/shm")  # through which loader processes hand on what they have made
ABSENT = {errno.ENOENT, errno.ENXIO}  # for a path to write, a user's mistake; for a file to read, a defect of semcorr
FILES = 65536  # more than a command ever has open at once
MEMORY = (
    "Lower `data.encode_batch`, `data.batch_size`, `data.workers` or `backbone.grid`; store=disk keeps features on disk"
)
NO_SHARED_MEMORY = (
    "the loader processes have run out of shared memory (/dev/shm). Give data.workers=0, or enlarge it "
    "(docker run --shm-size)"
)
OPEN = r"too many open files|received 0 items of ancdata|errno 24\b"
NO_MEMORY = (
    r"cannot allocate memory|can't allocate memory|not enough memory: you tried to allocate|std::bad_alloc|"
    r"failed to map segment|errno 12\b"
)
FULL_SHARED = r"bus error|shared memory|/torch_\d+_\d+"
KILLED = r"dataloader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: killed|exited unexpectedly)"


def raise_open_files() -> None:
    """Raise the limit on open files as far as the system allows: loaders and stores need many."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def explain_limit(error: BaseException) -> str | None:
    """Return the message for an error caused by a limit of the machine; None for any other.

    Args:
        error: Error that was raised; its explicit causes are examined, too.
    """
    for cause in _iterate_causes(error):
        if (message := _explain_text(cause) or _explain_number(cause)) is not None:
            return message
    return None


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _explain_text(error: BaseException) -> str | None:
    """Explain an error by its text, which is all that PyTorch and loader processes pass on."""
    error_type, text = type(error).__name__, str(error).lower()
    if error_type in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in text:
        return f"the GPU has run out of memory. {MEMORY}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory. {MEMORY}"
    if not isinstance(error, RuntimeError | OSError | ImportError):
        return None
    if re.search(OPEN, text):
        return (
            f"too many files are open at once{_format_file_limit()}. Raise the limit (ulimit -n 4096), or lower "
            "`data.workers`"
        )
    if re.search(NO_MEMORY, text):
        return f"there is not enough memory. {MEMORY}"
    if isinstance(error, RuntimeError) and re.search(FULL_SHARED, text):
        return NO_SHARED_MEMORY
    if re.search(KILLED, text):
        return f"a loader process was killed, as the system does when memory runs out. {MEMORY}"
    if "can't start new thread" in text or getattr(error, "errno", None) == errno.EAGAIN:
        return "the system allows no more processes or threads. Lower `data.workers`, or raise the limit (ulimit -u)"
    return None


def _explain_number(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    number, name, reason = error.errno, error.filename2 or error.filename, error.strerror
    if number is None and (match := re.search(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]+)')?\s*$", str(error))):
        number, reason, name = int(match[1]), match[2], match[3]  # from a loader process
    if number not in REASONS - ABSENT:
        return None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{name or 'a file'} cannot be written ({reason}). Free some space, or choose another place"
    if name is None:
        return None
    path = os.fspath(name) if isinstance(name, str | os.PathLike) else str(name)
    return f"{path}: {reason}. See to its permissions, or choose another place"


def _format_file_limit() -> str:
    try:
        import resource
    except ImportError:
        return ""
    return f" (the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
