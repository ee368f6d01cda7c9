"""Features of the last test, for the next job of a sweep: one that changes a read-out alone computes none."""

from collections.abc import Callable, Sequence

from semcorr.data.image_variants import ImageVariant
from semcorr.store.cache import FeatureCache


class SweepFeatureCache:
    """Room for the features of one test. Closed, it keeps nothing: a run by itself frees what it has used."""

    def __init__(self) -> None:
        self.open = False
        self._key: str | None = None
        self._images: list[tuple[object, ...]] = []
        self._held: FeatureCache | None = None

    def __call__(self, key: str, shown: Sequence[ImageVariant], make: Callable[[], FeatureCache]) -> FeatureCache:
        """What is there, if it was made with the same key of the same images; else `make()`, kept if it is open.

        Args:
            key: All that features depend on but the image.
            shown: The images.
            make: Computes them.
        """
        images = [_identity(one) for one in shown]
        if self._held is not None and self._key == key and self._images == images:
            return self._held
        self.clear()  # before there are new ones: there may not be room for both
        held = make()
        if self.open:
            self._key, self._images, self._held = key, images, held
        return held

    def close(self) -> None:
        """The sweep is over."""
        self.open = False
        self.clear()

    def clear(self) -> None:
        """Free it."""
        self._key, self._images, self._held = None, [], None


def _identity(shown: ImageVariant) -> tuple[object, ...]:
    """What an image's features are of: a name alone may be another file's by the time of the next job."""
    record = shown.record
    try:
        now = record.path.stat()
        state = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
    except OSError:  # who opens it says so
        state = None
    return shown.name, record.path, record.upright, record.mirrored, state


SHELF = SweepFeatureCache()
