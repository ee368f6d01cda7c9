"""Reading of the tensors in a TorchScript archive, without running the program in it.

OpenAI publishes CLIP this way. `torch.load(weights_only=True)` refuses such files, and `torch.jit.load`,
which PyTorch 2.15 calls deprecated, loads a program whose `__setstate__` methods run: unsafe for a
downloaded file. The tensors are in the archive as plain bytes, and the pickle beside them says which is
which; everything that this pickle may name is inert here.
"""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.pickles import BombError, read_member, require_torch_file

MODULES = 100_000  # in one archive; a large network has some thousand
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Tell whether `torch.jit.save` wrote this archive: only its archives have constants."""
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read parameters and buffers by name.

    Raises:
        UserError: The archive names something that no module of tensors needs. Nothing in it has been run.
    """
    require_torch_file(path)
    with ZipFile(path) as archive:
        return _flatten_module(_Tensors(archive, path).load())


class _Module(dict[str, object]):
    """A scripted module's attributes; its methods stay text in the archive."""

    def __setstate__(self, state: object) -> None:
        self.update(state if isinstance(state, dict) else {})


def _flatten_module(module: _Module) -> dict[str, Tensor]:
    """Collect tensors by the names of their modules, at any depth, with a limit where modules share modules."""
    flat: dict[str, Tensor] = {}
    pending = [("", module)]
    for _ in range(MODULES):
        if not pending:
            return flat
        prefix, module = pending.pop()
        flat |= {prefix + key: value for key, value in module.items() if isinstance(value, Tensor)}
        pending += [(f"{prefix}{key}.", value) for key, value in module.items() if isinstance(value, _Module)]
    raise BombError(f"it has more than {MODULES} modules")


def _build_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """Build a tensor as a view of its storage."""
    return storage.as_strided(size, stride, offset)


def _return_value(value: object, *_: object) -> object:
    """Return a value without the type that the archive declares for it."""
    return value


class _Tensors(pickle.Unpickler):
    """A reader of the pickle in an archive, whose names all stand for something inert."""

    def __init__(self, archive: ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
        self.folder = pickled.removesuffix("data.pkl")
        super().__init__(BytesIO(read_member(archive, pickled)))

    def find_class(self, module: str, name: str) -> object:
        """Return something inert for a name in the pickle, or raise an error."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return _return_value  # typed lists
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _build_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise UserError(
            f"`backbone.weights`: {self.path} wants to call {module}.{name}; nothing in it was run. "
            "Give a safetensors file or a plain PyTorch state dict."
        )

    def persistent_load(self, pid: object) -> Tensor:
        """Load a storage, given as ("storage", dtype, file, device, length)."""
        if not isinstance(pid, tuple):
            raise TypeError(f"it names a storage by a {type(pid).__name__}")
        _, dtype, key, _, length = pid
        content = read_member(self.archive, f"{self.folder}data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if length else torch.empty(0, dtype=dtype)
