"""A reader of pickled arrays that runs no code of the file.

`pickle.load` calls whatever the file names. This reader resolves only names that make an array or a plain
container.
"""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, SupportsIndex

import numpy as np

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain
from semcorr.core.pickles import require_bounded_pickle


def load_arrays(path: Path) -> object:
    """Load a pickle of NumPy arrays in built-in containers.

    Raises:
        UserError: The file cannot be read, is damaged, or names anything else. Nothing in it has run.
    """
    try:
        with open_plain(path) as file:
            require_bounded_pickle(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            return _Arrays(file, path).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Restore the official file.") from None
    except Exception as error:  # a damaged stream of instructions can fail in any way
        raise UserError(
            f"{path} is damaged or not a pickle ({type(error).__name__}: {error}). Restore the official file."
        ) from None


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Encode text as Latin-1: old pickles hold bytes as text, and need this codec only."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _array_maker(protocol: SupportsIndex) -> Callable[..., object]:
    """Return the function that makes an array: NumPy 2 moved it from numpy.core to numpy._core."""
    reduced = np.empty(0).__reduce_ex__(protocol)
    assert isinstance(reduced, tuple)
    maker: Callable[..., object] = reduced[0]
    return maker


_RECONSTRUCT, _FROM_BUFFER = _array_maker(2), _array_maker(5)
_MAKERS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("collections", "OrderedDict"): OrderedDict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        """Return a class of the list above; refuse any other."""
        if (module, name) not in _MAKERS:
            raise UserError(
                f"{self.path} wants to call {module}.{name}. A pickle of arrays has no need to, so it was not "
                "read; if it is not the official file, do not trust it. Restore the official file."
            )
        return _MAKERS[module, name]
