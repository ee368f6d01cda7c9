"""Checks of what plug-ins of other packages promise, each where the part is built.

They are the map of a backbone, the grid of a head, the cells of a readout, and how a loss, a way of tuning, an
optimiser and a schedule are called. Shapes are enough to tell, so networks run once on PyTorch's meta device, in
milliseconds; one that cannot run there runs on black images. What this package has itself is held to the same by its
tests.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from hydra.errors import InstantiationException
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone, FineHead, SiameseHead
from semcorr.core.limits import explain_limit
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import ProtocolReadout, Readout, list_readouts
from semcorr.models.losses import Loss, StructuredLoss, WeightedSum

IMAGES, POINTS, CELLS = 2, 3, 8  # numbers that no channel or side is likely to equal by accident
ATTRIBUTES = ("name", "size", "channels", "widths", "stride", "blocks", "sha256")
ARGUMENTS = {  # what the parts that are functions are called with
    "loss": ("similarity", "true cells", "mask"),
    "localise": ("similarities (b n h w)",),
    "finetune": ("the backbone",),
    "optimizer": ("trainable parameters of head and loss", "trainable parameters of the backbone"),
    "scheduler": ("the optimiser", "steps of the run", "steps of an epoch"),
}


def require_backbone(backbone: nn.Module) -> None:
    """Refuse a backbone that gives another map than its attributes say.

    Args:
        backbone: What `backbone._target_` has built.

    Raises:
        UserError: An attribute is missing, or the map of an image has another type, shape or stride.
    """
    if _is_own(backbone):
        return
    origin = f"`backbone._target_`: {_describe_part(backbone)}"
    if not isinstance(backbone, Backbone):
        raise UserError(f"{origin} is not a backbone. Inherit semcorr.core.interfaces.Backbone.")
    if absent := [key for key in ATTRIBUTES if not hasattr(backbone, key)]:
        raise UserError(f"{origin} has no {', '.join(absent)}. Add what semcorr.core.interfaces.Backbone lists.")
    size, channels, stride, widths = backbone.size, backbone.channels, backbone.stride, backbone.widths
    promises = {
        "name": ("text", isinstance(backbone.name, str)),
        "sha256": ("text, as weights_sha256 gives it", isinstance(backbone.sha256, str)),
        "size": ("a number of pixels", _is_count(size)),
        "stride": ("a number of pixels", _is_count(stride)),
        "channels": ("a number", _is_count(channels)),
        "widths": (
            f"a list of numbers whose sum is channels, {channels}",
            isinstance(widths, Sequence) and all(map(_is_count, widths)) and sum(widths) == channels,
        ),
        "blocks": ("a list of modules", _is_list_of_modules(backbone.blocks)),
    }
    for attribute, (kind, is_kept) in promises.items():
        if not is_kept:
            raise UserError(f"{origin}.{attribute} must be {kind}, got {getattr(backbone, attribute)!r:.60}.")
    if backbone.needs_pair:
        return
    with explain_failure("backbone", backbone):
        maps = _run_without_values(backbone, lambda device: (torch.zeros(IMAGES, 3, size, size, device=device),))
    if not isinstance(maps, FeatureMap):
        raise UserError(f"{origin} must return a FeatureMap of an image, got {_describe_value(maps)}.")
    if not isinstance(maps.values, Tensor):
        raise UserError(f"{origin} must return a FeatureMap of a tensor, got {_describe_value(maps.values)}.")
    cells = round(size / stride)
    expected = (IMAGES, channels, cells, cells)
    if tuple(maps.values.shape) != expected or maps.stride != stride or not maps.values.is_floating_point():
        raise UserError(
            f"{origin} says that it has {channels} channels and a stride of {stride} pixels. Of {IMAGES} images of "
            f"{size} x {size} pixels its map must be {expected} of stride {stride}, got "
            f"{_describe_value(maps.values)} of stride {maps.stride!r}."
        )


def require_head(head: nn.Module, backbone: Backbone) -> None:
    """Refuse a head whose similarities are on no grid of the whole image.

    Args:
        head: What `head._target_` has built for the backbone.
        backbone: The backbone.

    Raises:
        UserError: A map or a similarity has another type or shape, or a stride that does not fit its grid.
    """
    if _is_own(head):
        return
    origin, cells = f"`head._target_`: {_describe_part(head)}", round(backbone.size / backbone.stride)
    if not isinstance(head, nn.Module):
        raise UserError(f"{origin} is not a head. Inherit torch.nn.Module.")
    compare = _Comparison(head, origin, backbone.stride)
    shape = (IMAGES, backbone.channels, cells, cells)
    with explain_failure("head", head):
        similarity = _run_without_values(
            compare,
            lambda device: (torch.zeros(shape, device=device), torch.full((IMAGES, POINTS, 2), 1.0, device=device)),
        )
    if not isinstance(similarity, Tensor) or not similarity.is_floating_point() or similarity.dim() != 4:
        kind = "similarities (images, points, rows, columns)"
        raise UserError(f"{origin} must return {kind}, got {_describe_value(similarity)}.")
    images, points, h, w = similarity.shape
    if (images, points) != (IMAGES, POINTS) or h != w or h == 0 or h % cells:
        raise UserError(
            f"{origin} must return the similarity of each point with each of {cells} x {cells} cells, or of several "
            f"times as many along both sides: of {IMAGES} pairs of {POINTS} points {(IMAGES, POINTS, cells, cells)}, "
            f"got {tuple(similarity.shape)}."
        )
    fineness = head.fineness if isinstance(head, FineHead) else 1
    if not isinstance(head, SiameseHead) and h != fineness * cells:
        raise UserError(
            f"{origin} returns similarities with {h} x {h} cells for features of {cells} x {cells}. Give it an "
            f"attribute fineness = {h // cells}."
        )


def require_terms(terms: Mapping[str, object]) -> None:
    """Refuse a loss that is not a number which the trained weights can follow.

    Args:
        terms: Values of a loss by the names of its terms.

    Raises:
        UserError: A value is not a tensor of one number, or none has a gradient.
    """
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise UserError(f"`loss`: {name} must return a tensor of one number, got {_describe_value(value)}.")
    has_gradient = any(isinstance(value, Tensor) and value.requires_grad for value in terms.values())
    if torch.is_grad_enabled() and not has_gradient:
        raise UserError(
            f"`loss`: {', '.join(terms)} depends on no trainable weight, so nothing can be learned. Does a backbone, "
            "head or loss of your own detach its result?"
        )


def require_readout(localise: Readout | ProtocolReadout) -> None:
    """Refuse a readout that does not return a cell of the grid for every point.

    Args:
        localise: What `localise._target_` has built: a readout, several, or the stand-in for those of protocols.

    Raises:
        UserError: A readout fails, or what it returns has another type, shape or range.
    """
    for readout in [] if isinstance(localise, ProtocolReadout) else list_readouts(localise):
        require_call("localise", readout)
        if _is_own(readout):
            continue
        similarity = torch.arange(IMAGES * POINTS * CELLS**2).mul(0.7).sin().reshape(IMAGES, POINTS, CELLS, CELLS)
        with torch.no_grad(), explain_failure("localise", readout):
            cells: object = readout(similarity)
        expected = f"{(IMAGES, POINTS, 2)} of float32, x and y of a cell for each of {POINTS} points"
        origin = f"`localise._target_`: {_describe_part(readout)} must return {expected}"
        if not isinstance(cells, Tensor) or cells.shape != (IMAGES, POINTS, 2) or cells.dtype != similarity.dtype:
            raise UserError(f"{origin}, got {_describe_value(cells)}.")
        if not ((cells >= -1) & (cells <= CELLS)).all():  # NaN is in no range
            raise UserError(
                f"{origin}, on the grid, from 0 to {CELLS - 1} on one of {CELLS} x {CELLS} cells, got {cells.min():g} "
                f"to {cells.max():g}."
            )


def require_loss(loss: Loss) -> None:
    """Refuse a loss that cannot be called as a training step does, or one whose terms cannot.

    Args:
        loss: What `loss._target_` has built.
    """
    for term in loss.terms.values() if isinstance(loss, WeightedSum) else (loss,):
        require_call("loss", term, ("the LossInputs of a step",) if isinstance(term, StructuredLoss) else None)


def require_call(key: str, part: object, arguments: Sequence[str] | None = None) -> None:
    """Refuse a part that cannot be called with what it will be given, by its signature alone.

    Args:
        key: Section of the part: `loss`, `localise`, `finetune`, `optimizer` or `scheduler`.
        part: What the section has built.
        arguments: What it is called with; None, what such a part is always called with.

    Raises:
        UserError: It is not a function, or takes other arguments.
    """
    if _is_own(part):
        return
    given = ARGUMENTS[key] if arguments is None else arguments
    origin = f"`{key}._target_`: {_describe_part(part)}"
    usage = f"It is called with {len(given)} argument{'s' * (len(given) > 1)}: {', '.join(given)}."
    if isinstance(part, partial) and isinstance(part.func, type) and key in ("loss", "localise", "finetune"):
        raise UserError(
            f"{origin} is a class, and would be built anew at each call. Leave out {key}._partial_. {usage}"
        )
    function = part.forward if isinstance(part, nn.Module) else part
    if not callable(function) or getattr(type(part), "forward", None) is nn.Module.forward:
        raise UserError(
            f"{origin} cannot be called. {usage} Give a function with _partial_: true, or a class with __call__."
        )
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        raise UserError(f"{origin} takes other arguments: {error}. {usage}") from None
    except ValueError:  # of a built-in, which has no signature
        return


def require_optimizer(optimizer: object, parameters: Sequence[nn.Parameter], origin: object) -> None:
    """Refuse an optimiser that changes no weight of the model.

    Args:
        optimizer: What the function of `optimizer._target_` has returned.
        parameters: Trainable parameters of the model.
        origin: The function.

    Raises:
        UserError: It is not an optimiser, or has none of the parameters.
    """
    key = f"`optimizer._target_`: {_describe_part(origin)}"
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"{key} must return a torch.optim.Optimizer, got {_describe_value(optimizer)}.")
    missing, sizes = list_left_out(optimizer, parameters), [parameter.numel() for parameter in parameters]
    if len(missing) == len(sizes):
        raise UserError(
            f"{key} reaches none of the {sum(sizes):,} trainable weights. Build it over what it is called with: "
            f"{' and '.join(ARGUMENTS['optimizer'])}."
        )


def list_left_out(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """List the parameters that an optimiser does not have."""
    reached = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in parameters if id(parameter) not in reached]


def require_schedule(schedule: object, origin: object) -> None:
    """Refuse anything but a schedule of learning rates.

    Args:
        schedule: What the function of `scheduler._target_` has returned.
        origin: The function.
    """
    if not isinstance(schedule, LRScheduler):
        raise UserError(
            f"`scheduler._target_`: {_describe_part(origin)} must return a torch.optim.lr_scheduler.LRScheduler, got "
            f"{_describe_value(schedule)}."
        )


def require_gradients(loss: object, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a loss whose gradient has reached no weight of the model; nothing waits for a device.

    Args:
        loss: The loss.
        parameters: Trainable parameters of the model, after a backward pass.

    Raises:
        UserError: None has a gradient.
    """
    if all(parameter.grad is None for parameter in parameters):
        count = sum(parameter.numel() for parameter in parameters)
        raise UserError(
            f"`loss`: {_describe_part(loss)} reaches none of the {count:,} trainable weights, so nothing can be "
            "learned. Does a backbone, head or loss of your own detach its result, or make a new tensor of it?"
        )


@contextmanager
def explain_failure(key: str, part: object, hint: str = "") -> Iterator[None]:
    """Tell in a sentence what a part of another package has raised; errors of ours keep their traceback.

    Args:
        key: Section of the part.
        part: The part, or the path of its class or function.
        hint: Sentence for a TypeError, on how the part is called.

    Raises:
        UserError: Something was raised, or the part has tried to end the program.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        call = re.match(r"Error in call to target '([^']*)'", str(error))
        if isinstance(error, InstantiationException) and not call:
            raise
        culprit, reason = (call[1], error.__cause__) if call else (_describe_part(part), error)
        is_own = culprit.partition(".")[0] == "semcorr" and not isinstance(error, SystemExit)
        if is_own or isinstance(reason, UserError) or explain_limit(error) is not None:
            raise
        places = [
            f" ({frame.f_code.co_qualname}, line {line} of {frame.f_code.co_filename})"
            for frame, line in traceback.walk_tb(error.__traceback__ if reason is None else reason.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == culprit.partition(".")[0]
        ]
        remedy = f" {hint}" if hint and isinstance(reason, TypeError) else ""
        text = " ".join(f"{type(reason).__name__}: {reason}".split())
        place = places[-1] if places else ""
        raise UserError(f"`{key}._target_`: {culprit} failed: {text.rstrip('.')}{place}.{remedy}") from error


class _Comparison(nn.Module):
    """A head's way from features and points to similarities, with a check of the grid in between."""

    def __init__(self, head: nn.Module, origin: str, stride: int) -> None:
        super().__init__()
        self.head, self.origin, self.stride = head, origin, stride

    def forward(self, features: Tensor, points: Tensor) -> object:
        maps = FeatureMap(features, self.stride)
        if not isinstance(self.head, SiameseHead):
            return self.head(maps, maps, points)
        image = features.shape[-1] * self.stride
        transformed: object = self.head.transform(maps)
        if not isinstance(transformed, FeatureMap):
            raise UserError(f"{self.origin}.transform must return a FeatureMap, got {_describe_value(transformed)}.")
        values, stride = transformed.values, transformed.stride
        if not isinstance(values, Tensor):
            raise UserError(f"{self.origin}.transform must return a map of tensors, got {_describe_value(values)}.")
        if values.dim() != 4 or len(values) != IMAGES or any(side * stride != image for side in values.shape[2:]):
            raise UserError(
                f"{self.origin}.transform must return a map of the whole image, whose stride is its pixels per cell: "
                f"of {IMAGES} images of {image} x {image} pixels got {_describe_value(values)} of stride {stride!r}."
            )
        return self.head.compare(self.head.describe(transformed, points), transformed)


def _run_without_values(module: nn.Module, build_inputs: Callable[[str], tuple[Tensor, ...]]) -> object:
    """Run a module for the shapes of what it returns, as in an evaluation.

    Args:
        module: The module.
        build_inputs: Function from a device to the arguments of its `forward`.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [key for key, value in tensors if is_lazy(value)]:
        raise ValueError(f"{lazy[0]} has no shape yet. Give its size, and use no lazy modules.")
    weights = {key: torch.empty_like(value, device="meta") for key, value in tensors}
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            try:
                return functional_call(module, weights, build_inputs("meta"))
            except UserError:
                raise
            except Exception:  # an operation without shapes alone; one that fails here as well is the author's to see
                return module(*build_inputs("cpu"))
    finally:
        module.train(was_training)


def _is_own(part: object) -> bool:
    """Tell whether a part is of this package."""
    return _describe_part(part).partition(".")[0] == "semcorr"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list_of_modules(value: object) -> bool:
    kinds = (Sequence, nn.ModuleList, nn.Sequential)
    return isinstance(value, kinds) and all(isinstance(block, nn.Module) for block in value)


def _describe_part(part: object) -> str:
    """Return the path of a class or function, or that of the class of an instance."""
    if isinstance(part, str):
        return part
    function = part.func if isinstance(part, partial) else part
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _describe_value(value: object) -> str:
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
