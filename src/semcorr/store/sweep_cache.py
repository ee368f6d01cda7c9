"""Features of the last test, for the next job of a sweep: a job that changes a read-out alone computes none."""

from collections.abc import Callable, Sequence

from semcorr.data.image_variants import ImageVariant
from semcorr.store.cache import FeatureCache


class SweepFeatureCache:
    """Cache of the features of one test, which the jobs of a sweep hand on to each other."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._images: list[tuple[object, ...]] = []
        self._features: FeatureCache | None = None

    def __call__(self, key: str, shown: Sequence[ImageVariant], make: Callable[[], FeatureCache]) -> FeatureCache:
        """Return the cached features if key and images are the same; else `make()`, which takes their place.

        Args:
            key: Everything that features depend on but the image.
            shown: Images of the features.
            make: Function that computes the features.
        """
        images = [_identity(image) for image in shown]
        if self._features is not None and self._key == key and self._images == images:
            return self._features
        self.clear()  # first, since there may not be room for both
        self._key, self._images, self._features = key, images, make()
        return self._features

    def clear(self) -> None:
        """Free the cached features."""
        self._key, self._images, self._features = None, [], None


def _identity(shown: ImageVariant) -> tuple[object, ...]:
    """Identify the content of an image: by the next job, its name alone may belong to another file."""
    record = shown.record
    try:
        status = record.path.stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # opening the file raises the error
        state = None
    return shown.name, record.path, record.upright, record.mirrored, state
