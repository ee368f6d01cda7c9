"""Keypoints that a training does not see, so that a test tells what it has learned of the rest of an object."""

import logging
from collections.abc import Sequence

from semcorr.core.errors import UserError
from semcorr.data.record import ImageRecord, PairRecord

log = logging.getLogger(__name__)

HALF = "half"


def list_heldout(choice: str | Sequence[int], pair: PairRecord) -> list[int]:
    """List the original ids of the keypoints that are held out of the category of a pair.

    Args:
        choice: Their ids, the same in every category; or `half`: ids in ascending order are trained and held out by
            turns, a left keypoint together with its right one, and every one falls to the half that has fewer yet.
        pair: A pair of the category.

    Raises:
        UserError: An id is none of the category's, or belongs together with one that is not held out.

    >>> from pathlib import Path
    >>> import torch
    >>> image = ImageRecord("", Path(), (9, 9), torch.zeros(5, 2), torch.ones(5).bool(), (0.0, 0.0, 8.0, 8.0))
    >>> list_heldout("half", PairRecord("", "cat", image, image, 8.0, flip=(1, 0, 2, 4, 3)))
    [2, 3, 4]
    """
    rows = len(pair.source.visible)
    flip = [*(pair.flip or ()), *range(len(pair.flip or ()), rows)][:rows]
    if choice != HALF:
        heldout = sorted({int(i) for i in choice})
        if outside := [i for i in heldout if i >= rows]:
            raise UserError(
                f"`data.heldout_keypoints`: {outside[0]} is not a keypoint of {pair.category}, whose ids are 0 to "
                f"{rows - 1}. Leave it out."
            )
        if unpaired := [i for i in heldout if flip[i] not in heldout]:
            raise UserError(
                f"`data.heldout_keypoints`: keypoint {unpaired[0]} of {pair.category} is {flip[unpaired[0]]} in a "
                "mirror image. Hold out both or neither."
            )
        return heldout
    halves: tuple[list[int], list[int]] = ([], [])
    for i in range(rows):
        together = sorted({i, flip[i]})
        if i == together[0]:
            min(halves, key=len).extend(together)
    return sorted(halves[1])


def hide_keypoints(pairs: Sequence[PairRecord], choice: str | Sequence[int], benchmark: str) -> list[PairRecord]:
    """Return the pairs without the keypoints that are held out; a pair that shares no other is dropped.

    Args:
        pairs: Pairs of a split.
        choice: Ids of keypoints, or `half`, as of `list_heldout`.
        benchmark: The benchmark and the split, for messages.

    Raises:
        UserError: No pair is left.
    """
    by_category: dict[str, list[int]] = {}
    records: dict[tuple[int, str], ImageRecord] = {}  # a record stays one record, whose view is made once

    def hide(image: ImageRecord, category: str) -> ImageRecord:
        if (id(image), category) not in records:
            visible = image.visible.clone()
            visible[by_category[category]] = False
            records[id(image), category] = image._replace(visible=visible)
        return records[id(image), category]

    hidden = []
    for pair in pairs:
        if pair.category not in by_category:
            by_category[pair.category] = list_heldout(choice, pair)
        source, target = hide(pair.source, pair.category), hide(pair.target, pair.category)
        if bool((source.visible & target.visible).any()):
            hidden.append(pair._replace(source=source, target=target))
    if not hidden:
        raise UserError(f"`data.heldout_keypoints` leaves no pair of {benchmark} a keypoint. Hold out fewer.")
    if len(hidden) < len(pairs):
        log.warning(
            "%s: %d of %d pairs share only keypoints that are held out, and are left out",
            benchmark,
            len(pairs) - len(hidden),
            len(pairs),
        )
    return hidden
