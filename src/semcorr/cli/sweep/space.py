"""What a search chooses from: the intervals, ranges and choices of a command line, as Optuna's distributions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from semcorr.core.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float
HINT = "Give a key several values, as head=cosine,cats, or an interval: 'optimizer.lr=tag(log, interval(1e-4,1e-2))'"


def build_space(overrides: Sequence[Override]) -> "dict[str, BaseDistribution]":
    """Build the distribution of every key that has more than one value.

    Raises:
        UserError: No key has more than one value, or the values of one cannot be searched.
    """
    space = {text.get_key_element(): build_distribution(text) for text in overrides if text.is_sweep_override()}
    if not space:
        raise UserError(f"`hydra/sweeper`: nothing is searched. {HINT}")
    return space


def build_distribution(override: Override) -> "BaseDistribution":
    """Build the distribution of a key: of an interval by its ends, of a range by its steps, else of its values.

    Raises:
        UserError: The values cannot be searched.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    tags = set(getattr(sweep, "tags", ()))
    if tags - ({"log"} if isinstance(sweep, IntervalSweep) else set()):
        raise UserError(
            f"`{override.input_line}`: of tags a search knows log, of an interval alone. Leave out the others."
        )
    try:
        if isinstance(sweep, IntervalSweep):
            low, high = sweep.start, sweep.end
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log="log" in tags)
            return FloatDistribution(float(low or 0), float(high or 0), log="log" in tags)
        if isinstance(sweep, RangeSweep):
            values = sorted(value for value in override.sweep_iterator() if isinstance(value, int | float))
            if all(isinstance(value, int) for value in values):
                return IntDistribution(int(values[0]), int(values[-1]), step=int(abs(sweep.step)))
            low, high, step = (float(f"{value:.12g}") for value in (values[0], values[-1], abs(sweep.step)))
            return FloatDistribution(low, high, step=step)  # sums of steps are rounded, or Optuna drops the last value
        return CategoricalDistribution([*override.sweep_string_iterator()])
    except (ValueError, IndexError) as error:
        raise UserError(f"`{override.input_line}` cannot be searched: {error}") from None


def list_corners(space: "Mapping[str, BaseDistribution]") -> Iterator[dict[str, Value]]:
    """Yield values at which to check a search before it begins: each end of an interval and each choice, once."""
    ends = {key: [*getattr(d, "choices", ())] or [getattr(d, "low"), getattr(d, "high")] for key, d in space.items()}  # noqa: B009
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        yield from ({**first, key: value} for value in values[1:])


def fill_values(overrides: Sequence[Override], values: Mapping[str, Value]) -> list[str]:
    """Return the overrides of a job, with the values that are chosen for it in their places."""
    keys = [override.get_key_element() for override in overrides]
    return [
        f"{key}={values[key]}" if key in values else str(override.input_line)
        for key, override in zip(keys, overrides, strict=True)
    ]
