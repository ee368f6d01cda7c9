"""A device that is not there: tensors that act as a GPU's, computed on the CPU, with a record of every wait for it.

`register_device` renames PyTorch's spare backend for the whole process, so only programs that are started for it call
it: see `device_reads.py`. A tensor of the device holds a CPU tensor, on which every operation runs. What a GPU would
have to be waited for is recorded with the line of Python that asked: numbers that the host reads, sizes that only the
device knows, and copies to the device from memory that is not pinned. What CUDA refuses is refused: operands on two
devices, products of two floating-point types.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

NAME = "standin"
PACKAGE = str(Path(__file__).parents[2] / "src")
aten = torch.ops.aten

READS = {  # operations whose result, or its size, the host waits for
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.nonzero_static.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.histc.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
PRODUCTS = {
    "mm", "bmm", "addmm", "addmm_", "baddbmm", "addmv", "mv", "dot", "addbmm", "convolution", "convolution_backward",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu", "linear", "matmul",
}  # fmt: skip


def map_nested(change: Callable[[object], object], value: object) -> object:
    """Change the leaves of lists, tuples and dictionaries; PyTorch's own takes as long as the operations."""
    if isinstance(value, list | tuple):
        return type(value)([map_nested(change, part) for part in value])
    if isinstance(value, dict):
        return {key: map_nested(change, part) for key, part in value.items()}
    return change(value)


def list_tensors(value: object) -> list[Tensor]:
    """List the tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in list_tensors(part)]


class Wait(NamedTuple):
    """One wait of the host for the device."""

    operation: str
    place: str  # the innermost line of the package, or of whoever called


WAITS: list[Wait] = []


class DeviceTensor(torch.Tensor):
    """A tensor of the device."""

    payload: Tensor

    @staticmethod
    def __new__(cls, payload: Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            payload.shape,
            strides=payload.stride(),
            storage_offset=payload.storage_offset(),
            dtype=payload.dtype,
            device=torch.device(NAME, 0),
        )
        made.payload = payload
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"DeviceTensor({self.payload})"

    def tolist(self) -> list:
        """Copy to the host first, as PyTorch does for any device, but not for subclasses."""
        return self.cpu().tolist()

    def __getitem__(self, index: object) -> Tensor:
        return super().__getitem__(self._index_on_device(index))

    def __setitem__(self, index: object, value: object) -> None:
        super().__setitem__(self._index_on_device(index), value)

    def _index_on_device(self, index: object) -> object:
        """Copy lists to the device, as PyTorch does, in a call of its own that has no Python."""
        if isinstance(index, tuple):
            return tuple(self._index_on_device(part) for part in index)
        return torch.tensor(index).to(self.device) if isinstance(index, list | range) else index

    def numpy(self, **options: object) -> None:
        raise TypeError(f"can't convert {self.device} tensor to numpy. Use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict) -> "DeviceTensor":
        copy = DeviceTensor(self.payload.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        parts = func.decompose(*args, **(kwargs or {}))  # in inference mode PyTorch leaves it to us
        return run_operation(func, *args, **(kwargs or {})) if parts is NotImplemented else parts


def run_operation(func, *args, **kwargs):
    """Run an operation on the payloads, after the checks that a GPU would make."""
    operands = list_tensors([args, kwargs])
    on_device = [value for value in operands if isinstance(value, DeviceTensor)]
    target = kwargs.get("device")
    is_device = torch.device(target).type == NAME if target is not None else bool(on_device)
    _record_wait(func, args, kwargs, operands, is_device)
    _refuse_mixtures(func, operands)
    wrappers = {id(value.payload): value for value in on_device}
    args, kwargs = map_nested(_unwrap, args), map_nested(_unwrap, kwargs)
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    with torch.inference_mode(False):  # a view of a weight would else be a tensor of another kind than PyTorch expects
        return _wrap_results(func, func(*args, **kwargs), wrappers, is_device, operands)


def _wrap_results(
    func, results: object, wrappers: dict[int, DeviceTensor], is_device: bool, operands: Sequence[Tensor]
):
    if func in COPIES and func is not aten._to_copy.default:
        is_device = isinstance(operands[0], DeviceTensor)

    def wrap(value: object) -> object:
        if not isinstance(value, Tensor) or not is_device:
            return value
        made = wrappers.get(id(value))
        if made is None:
            return DeviceTensor(value)
        if (made.shape, made.stride()) != (value.shape, value.stride()):
            raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        return made

    return map_nested(wrap, results)


def _unwrap(value: object) -> object:
    if isinstance(value, DeviceTensor):
        return value.payload
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _record_wait(func, args: Sequence, kwargs: dict, operands: Sequence[Tensor], is_device: bool) -> None:
    """Record a wait, if the operation makes the host wait."""
    blocking = not kwargs.get("non_blocking", False) and not (func is aten.copy_.default and args[2:3] == (True,))
    places = [isinstance(value, DeviceTensor) for value in operands]
    if func in READS and any(places):
        _add_wait(str(func))
    elif func in INDEXING and any(places):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _add_wait(f"{func} by a mask")
        elif not all(isinstance(index, DeviceTensor) for index in indices):
            _add_wait(f"{func} by an index of the host")
    elif func is aten._to_copy.default and places == [True] and not is_device:
        _add_wait("copy to the host")
    elif func in (aten.copy_.default, aten._copy_from.default) and len(places) == 2:
        if places == [False, True]:
            _add_wait("copy to the host")
        elif places == [True, False] and blocking:
            _add_wait("blocking copy to the device")


def _refuse_mixtures(func, operands: Sequence[Tensor]) -> None:
    """Refuse operands on both devices, and products of two floating-point types, as CUDA does."""
    if func in COPIES or func in INDEXING:
        return
    kinds = {isinstance(value, DeviceTensor) for value in operands if value.ndim or isinstance(value, DeviceTensor)}
    if len(kinds) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but got both cpu and {NAME}: {func}")
    name = func._schema.name.removeprefix("aten::")
    types = {value.dtype for value in operands if value.is_floating_point()}
    if name in PRODUCTS and len(types) > 1:
        raise RuntimeError(f"{func} of {', '.join(sorted(map(str, types)))}")


def _add_wait(operation: str) -> None:
    frame, place = sys._getframe(), ""
    while frame is not None:
        path = frame.f_code.co_filename
        line = f"{path}:{frame.f_lineno}"
        if path.startswith(PACKAGE):
            place = line.removeprefix(f"{PACKAGE}/")
            break
        if not place and path != __file__ and "/torch/" not in path:
            place = line
        frame = frame.f_back
    WAITS.append(Wait(operation, place))


@contextmanager
def record_waits() -> Iterator[list[Wait]]:
    """Yield a list that holds, afterwards, the waits of the block."""
    found: list[Wait] = []
    start = len(WAITS)
    yield found
    found += WAITS[start:]


class DeviceModule:
    """What PyTorch asks of the module of a backend."""

    synchronised = 0

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: random numbers come from the CPU's generator."""

    @classmethod
    def synchronize(cls, device: object = None) -> None:
        cls.synchronised += 1


# -- autocast, as `aten/src/ATen/autocast_mode.h` has it for CUDA --

LOWER = """matmul conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution _convolution prelu addmm addmv addr mm mv einsum
    linalg_vecdot linear linalg_multi_dot chain_matmul baddbmm bmm addbmm scaled_dot_product_attention"""
SINGLE = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm frobenius_norm.dim nuclear_norm
    cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
    smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
    upsample_nearest2d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa
    upsample_linear1d upsample_trilinear3d grid_sampler_2d"""
SINGLE_RESULT = """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
    sum sum.dim_IntList"""
WIDEST = """addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add cat stack"""
HALF = (torch.bfloat16, torch.float16)


def _register_autocast(library: torch.library.Library) -> None:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def below(op) -> Callable:
        def call(*args, **kwargs):
            with torch._C._ExcludeDispatchKeyGuard(key):
                return op(*args, **kwargs)

        return call

    def cast(values: object, dtype: torch.dtype) -> object:
        def change(value: object) -> object:
            eligible = isinstance(value, DeviceTensor) and value.is_floating_point() and value.dtype != torch.double
            return value.to(dtype) if eligible and value.dtype != dtype else value

        return map_nested(change, values)

    def widest(values: object) -> torch.dtype:
        types = {value.dtype for value in list_tensors(values) if value.is_floating_point()}
        return torch.float32 if torch.float32 in types else torch.get_autocast_dtype(NAME)

    for names, choose in (
        (LOWER, lambda values: torch.get_autocast_dtype(NAME)),
        (SINGLE, lambda values: torch.float32),
        (WIDEST, widest),
    ):
        for op in map(_operation, names.split()):

            def kernel(*args, op=op, choose=choose, **kwargs):
                with torch._C._ExcludeDispatchKeyGuard(key):
                    return op(*cast(args, choose(args)), **cast(kwargs, choose(args)))

            library.impl(op, kernel, "AutocastPrivateUse1")
    for op in map(_operation, SINGLE_RESULT.split()):

        def kernel(*args, op=op, **kwargs):
            names = [argument.name for argument in op._schema.arguments]
            given = dict(zip(names, args, strict=False)) | kwargs
            if given.get("dtype") is None and args[0].dtype in HALF:
                kwargs = {**given, "dtype": torch.float32}
                args = tuple(kwargs.pop(name) for name in names[: len(args)] if name != "dtype")
            return below(op)(*args, **kwargs)

        library.impl(op, kernel, "AutocastPrivateUse1")


def _tensor_through_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.tensor` in the two steps of which it consists: its own call of the second has no Python."""

    def tensor(data: object, *, device: object = None, **options: object) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return tensor


def _operation(name: str):
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


FACTORIES = """arange arange.start arange.start_step linspace logspace eye eye.m randperm range tril_indices
    triu_indices"""  # they would fill an empty tensor, and change its size
LIBRARIES: list[torch.library.Library] = []  # they unregister themselves when they are collected


def register_device() -> torch.device:
    """Make the device known to this process, for good, and return it."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=DeviceModule())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(run_operation, "PrivateUse1")
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    operations = torch.library.Library("aten", "IMPL")
    _register_autocast(operations)
    for op in map(_operation, FACTORIES.split()):
        operations.impl(op, partial(run_operation, op), "PrivateUse1")
    LIBRARIES.extend((fallback, operations))
    torch.tensor = _tensor_through_host(torch.tensor)
    return torch.device(NAME, 0)


def probe_device() -> dict[str, list[str]]:
    """Return what is recorded, or refused, of operations whose behaviour on a GPU is known."""
    device = register_device()
    values, weight = torch.arange(6.0).view(2, 3).to(device), torch.ones(3, 4).to(device).requires_grad_()

    def product() -> Tensor:
        with torch.autocast(NAME, dtype=torch.bfloat16):
            output = values @ weight
            return [output, output.softmax(-1), output.sum(), torch.cat((output, values), dim=-1)]

    def train() -> None:
        optimizer = torch.optim.AdamW([weight])
        (product()[1].square().sum() * 2).backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()

    probes: dict[str, Callable[[], object]] = {
        "item": lambda: values.sum().item(),
        "bool": lambda: bool((values > 2).any()),
        "tolist": values.tolist,
        "cpu": values.cpu,
        "nonzero": values.nonzero,
        "mask": lambda: values[values > 2],
        "write by a mask": lambda: values.clone().index_put_((values > 2,), values.new_zeros(3)),
        "list": lambda: values[[0, 1]],
        "unique": values.unique,
        "equal": lambda: torch.equal(values, values),
        "repeat": lambda: values[0].repeat_interleave(values[0].long()),
        "upload": lambda: torch.tensor([1.0], device=device),
        "waiting upload": lambda: torch.ones(2).to(device),
        "upload behind the program's back": lambda: torch.ones(2).to(device, non_blocking=True),
        "factories": lambda: torch.zeros(2, device=device) + torch.arange(2, device=device),
        "masked fill": lambda: values.masked_fill(values > 2, 0.0),
        "index on the device": lambda: values[torch.ones(2, dtype=torch.long, device=device)],
        "number of the host": lambda: values * torch.tensor(2.0),
        "training": train,
        "two devices": lambda: values + torch.ones(3),
        "two types": lambda: values @ weight.bfloat16(),
        "numpy": values.numpy,
    }
    answers = {}
    for inference in (False, True):
        for name, probe in probes.items():
            if inference and name == "training":
                continue
            with torch.inference_mode(inference), record_waits() as waits:
                try:
                    probe()
                    refused = []
                except (RuntimeError, TypeError) as error:
                    refused = [f"refused: {type(error).__name__}"]
            answers[f"{name}, inference" if inference else name] = [wait.operation for wait in waits] + refused
    answers["types under autocast"] = [str(value.dtype) for value in product()]
    return answers


if __name__ == "__main__":
    print(json.dumps(probe_device()))
