"""Published recipes step by step and point by point: their losses, optimiser and rates, written from their papers.

The network is given; everything between its maps and its weights is restated here with loops over pairs, points and
cells, in double precision.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Maps = Sequence[Tensor]  # (c h w) of each image


def at(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate a map (... h w) between its four cells around (x, y), held inside it."""
    h, w = values.shape[-2:]
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    total = torch.zeros(values.shape[:-2], dtype=values.dtype)
    for row in range(h):
        for column in range(w):
            weight = max(0.0, 1 - abs(float(x) - column)) * max(0.0, 1 - abs(float(y) - row))
            if weight:
                total = total + weight * values[..., row, column]
    return total


def unit(values: Tensor) -> Tensor:
    return values / values.square().sum(0, keepdim=True).sqrt()


def cosines(descriptor: Tensor, target: Tensor) -> Tensor:
    """Cosine of a descriptor with every cell, (h w)."""
    return (unit(descriptor)[:, None, None] * unit(target)).sum(0)


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum() / len(values)


# -- the unified benchmark --


def unified_loss(sources: Maps, targets: Maps, pairs: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Tensor:
    """Mean over pairs of the mean over their points, each (x, y) as a share of its image from pixel to last pixel."""
    losses = []
    for source, target, points in zip(sources, targets, pairs, strict=True):
        last = target.shape[-1] - 1
        losses.append(mean([unified_point(unit(source), target, a * last, b * last) for a, b in points]))
    return mean(losses)


def unified_point(source: Tensor, target: Tensor, a: Tensor, b: Tensor) -> Tensor:
    logits = cosines(at(source, *a), target) / 0.03
    p = logits.exp() / logits.exp().sum()
    last, loss, sigma = target.shape[-1] - 1, torch.zeros((), dtype=torch.double), 1.5
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            x, y = b[0] + dx, b[1] + dy
            if 0 < x < last and 0 < y < last:
                density = math.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)) / (2 * math.pi * sigma * sigma)
                loss = loss - density * at(p, x, y).log()
    return loss


# -- GeoAware-SC --


def geo_aware_loss(
    maps: dict[str, Maps],
    pairs: Sequence[dict[tuple[str, str], list[tuple[Tensor, Tensor]]]],
    weights: dict[tuple[str, str], float],
    scale: Tensor,
) -> Tensor:
    """Mean over pairs of the weighted mean over those of its variants that share points; (x, y) in cells.

    Args:
        maps: Maps by what the images are: `source`, `target`, `mirrored source`, `mirrored target`.
        pairs: Points that both images of a variant show, by what its images are.
        weights: Weights of the variants.
        scale: Of the contrastive logits.
    """
    losses = []
    for i, variants in enumerate(pairs):
        terms = {key: points for key, points in variants.items() if points}
        if terms:
            values = [
                weights[key] * (dense(maps[key[0]][i], maps[key[1]][i], points)
                                + contrastive(maps[key[0]][i], maps[key[1]][i], points, scale))
                for key, points in terms.items()
            ]  # fmt: skip
            losses.append(torch.stack(values).sum() / sum(weights[key] for key in terms))
    return mean(losses)


def dense(source: Tensor, target: Tensor, points: list[tuple[Tensor, Tensor]]) -> Tensor:
    distances = []
    for a, b in points:
        logits = cosines(at(source, *a), target) / 0.02
        p = logits.exp() / logits.exp().sum()
        x = sum(p[:, column].sum() * column for column in range(p.shape[1]))
        y = sum(p[row].sum() * row for row in range(p.shape[0]))
        distances.append(((x - b[0]) ** 2 + (y - b[1]) ** 2).sqrt())
    return mean(distances)


def contrastive(source: Tensor, target: Tensor, points: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    first = [unit(at(source, *a)) for a, _ in points]
    second = [unit(at(target, *b)) for _, b in points]
    losses = []
    for i in range(len(points)):
        there = torch.stack([scale * (first[i] * other).sum() for other in second])
        back = torch.stack([scale * (second[i] * other).sum() for other in first])
        losses += [there.exp().sum().log() - there[i], back.exp().sum().log() - back[i]]
    return mean(losses)


# -- steps --


def halved_rate(step: int, rate: float, epoch_steps: int) -> tuple[float, float]:
    """Rate and first moment's decay: halved after the first and the second epoch."""
    return rate * 0.5 ** min(step // epoch_steps, 2), 0.9


def one_cycle_rate(step: int, rate: float, steps: int) -> tuple[float, float]:
    """A cosine from a 25th up to the rate at 0.3 of the steps, then down; the first moment's decay goes against it."""
    peak, lowest = 0.3 * steps - 1, rate / 25
    if step <= peak:
        share = (1 - math.cos(math.pi * step / peak)) / 2
        return lowest + (rate - lowest) * share, 0.95 - 0.1 * share
    share = (1 + math.cos(math.pi * (step - peak) / (steps - 1 - peak))) / 2
    return lowest / 1e4 + (rate - lowest / 1e4) * share, 0.95 - 0.1 * share


def train_slowly(
    weights: Iterable[Tensor],
    loss: Callable[[], Tensor],
    rate: Callable[[int], tuple[float, float]],
    decay: float,
    steps: int = 3,
) -> list[tuple[float, float]]:
    """Take AdamW's steps, and return each step's loss and length of the gradient."""
    weights, found = list(weights), []
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(steps):
        value = loss()
        gradients = torch.autograd.grad(value, weights)
        found.append((value.item(), math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))))
        lr, beta = rate(step)
        with torch.no_grad():
            for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                first[i] = beta * first[i] + (1 - beta) * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                unbiased = first[i] / (1 - beta ** (step + 1))
                spread = (second[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                weight.copy_(weight - lr * decay * weight - lr * unbiased / spread)
    return found
