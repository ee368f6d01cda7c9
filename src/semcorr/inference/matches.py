"""Matches of points of one picture in another, which draw themselves."""

import io
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from PIL import Image, ImageShow
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.inference.displayed import DisplayedPicture

log = logging.getLogger(__name__)


class Match(NamedTuple):
    """Matches of points of one picture in another; on the CPU, in the order of the points. A notebook draws it."""

    source: Float[Tensor, "n 2"]  # (x, y), original pixels of the source: the query points
    points: Float[Tensor, "n 2"]  # (x, y), original pixels of the target
    scores: Float[Tensor, " n"]  # similarity at the match: a cosine for most heads; that of consensus in [0, 1]
    consistent: Bool[Tensor, " n"]  # whether the match, matched back, lies within `cycle` cells of the point
    returned: Float[Tensor, "n 2"]  # the match matched back, in original pixels of the source
    pictures: tuple[DisplayedPicture, DisplayedPicture] | None = None  # source and target, to draw on

    def plot(self) -> Image.Image:
        """Draw source and target side by side, with numbered points; see `semcorr.inference.plots.plot_matches`.

        Raises:
            UserError: A picture's file is gone or has changed, or the match was made without pictures.
        """
        from semcorr.inference.plots import plot_matches

        if self.pictures is None:
            raise UserError(
                "This match has no pictures to draw on. Draw it by semcorr.inference.plots.plot_matches(a, b, match)"
            )
        source, target = (picture.load() for picture in self.pictures)
        return plot_matches(source, target, self)

    def show(self) -> None:
        """Display the plot: in a notebook below the cell, elsewhere in a viewer of this machine.

        Raises:
            UserError: This machine has no viewer; and see `plot`.
        """
        image, notebook = self.plot(), sys.modules.get("IPython")
        if notebook is not None and hasattr(notebook.get_ipython(), "kernel"):  # IPython in a terminal has none
            notebook.display.display(image)
        elif not ImageShow.show(image):
            raise UserError('No viewer for pictures was found on this machine. Save it: match.plot().save("match.png")')

    def _repr_png_(self) -> bytes | None:
        """Return the plot as PNG, for notebooks; None if there are no pictures to draw on: the text is shown then."""
        if self.pictures is None:
            return None
        buffer = io.BytesIO()
        try:
            self.plot().save(buffer, format="PNG")
        except UserError as error:  # a file that is gone: the notebook would print a traceback above the text
            log.warning("The match is not drawn: %s", error)
            return None
        return buffer.getvalue()


def round_point(point: Sequence[float]) -> list[float]:
    """Round coordinates to hundredths of a pixel."""
    return [round(value, 2) for value in point]
