"""Checks of tensors and arrays against the annotations of the function they are given to.

Shapes and types are read, never values: no check waits for a GPU.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import AbstractArray
from torch import Tensor

from semcorr.core.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
REAL, WHOLE, TRUTH = "real numbers", "whole numbers", "booleans"
REMEDIES = {REAL: "floats, as values.float()", WHOLE: "indices, as values.long()", TRUTH: "a mask, as values > 0"}


class AnnotatedArray(NamedTuple):
    """An argument, or a field of it, that is annotated with a shape."""

    name: str
    value: object
    is_tensor: bool
    dims: tuple[str, ...]  # a name, a size, or *name for any number of axes
    kind: str


def check_shapes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: its tensors must be what its annotations say, or it raises a UserError.

    Axes of one name are equally long in all arguments: nothing is broadcast. The fields of a NamedTuple count as well.
    """
    signature = inspect.signature(function)
    hints = {key: parameter.annotation for key, parameter in signature.parameters.items()}

    @wraps(function)
    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says best what is wrong
        sizes: dict[str, tuple[tuple[int, ...], str]] = {}
        for key, value in arguments.items():
            for array in _find_arrays(key, value, hints[key]):
                _require_array(array, sizes)
        return function(*args, **kwargs)

    return check_and_call


def _find_arrays(name: str, value: object, hint: object) -> Iterator[AnnotatedArray]:
    """List what is annotated with a shape: the argument itself, or fields of it."""
    if isinstance(value, tuple) and isinstance(hint, type) and isinstance(value, hint):
        for field, inner in hint.__annotations__.items():
            yield from _find_arrays(f"{name}.{field}", getattr(value, field), inner)
        return
    members = [member for member in (hint, *get_args(hint)) if _is_array(member)]
    if members and not (value is None and type(None) in get_args(hint)):
        dtypes: tuple[str, ...] = getattr(members[0], "dtypes", ())
        kind = TRUTH if "bool" in dtypes else REAL if "float32" in dtypes else WHOLE
        dims = str(getattr(members[0], "dim_str", "")).split()
        yield AnnotatedArray(name, value, getattr(members[0], "array_type", None) is Tensor, tuple(dims), kind)


def _is_array(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _require_array(array: AnnotatedArray, sizes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuse an argument of another kind or shape.

    Args:
        array: The argument.
        sizes: Sizes by the names of axes, with the argument that has them; new ones are added.
    """
    name, value = array.name, array.value
    if not isinstance(value, Tensor if array.is_tensor else np.ndarray):
        what, make = ("a tensor", "torch.as_tensor") if array.is_tensor else ("an array", "numpy.asarray")
        raise UserError(f"`{name}` must be {what}, got {type(value).__name__}. Convert it with {make}")
    allowed = (WHOLE, REAL) if array.kind == REAL else (array.kind,)  # whole numbers are real ones
    if isinstance(value, Tensor | np.ndarray) and _find_kind(value) not in allowed:
        raise UserError(f"`{name}` must hold {array.kind}, got {value.dtype}. Give {REMEDIES[array.kind]}")
    shape, dims = tuple(np.shape(value)), array.dims
    parts = [(size,) for size in shape]
    if dims and dims[0].startswith("*"):
        first = max(0, len(shape) - len(dims) + 1)
        parts = [shape[:first], *parts[first:]]
    known = [((int(dim),), "") if dim.isdigit() else sizes.get(dim, (None, "")) for dim in dims]
    fits = len(parts) == len(dims) and all(size in (None, part) for (size, _), part in zip(known, parts, strict=True))
    if not fits:
        words = [dim if size is None else ", ".join(map(str, size)) for dim, (size, _) in zip(dims, known, strict=True)]
        origin = next((f" to go with `{origin}`" for _, origin in known if origin), "")
        expected = ", ".join(word for word in words if word) + "," * (len(words) == 1)
        raise UserError(
            f"`{name}` must be of the shape ({expected}){origin}, got {shape}. Nothing is broadcast: give every entry"
        )
    for dim, part in zip(dims, parts, strict=True):
        sizes.setdefault(dim, (part, name))


def _find_kind(value: Tensor | np.ndarray) -> str:
    """Return what an array holds; nothing that is allowed for complex numbers, text and objects."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.is_complex():
            return TRUTH if value.dtype == torch.bool else ""
        return REAL if value.is_floating_point() else WHOLE
    return {"b": TRUTH, "f": REAL, "i": WHOLE, "u": WHOLE}.get(value.dtype.kind, "")
