"""Cache of features of many images by name: on the device, in memory or on a disk; and of the last job of a sweep."""

import hashlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from semcorr.core.files import part_path, remove_parts
from semcorr.core.finite import FiniteWatch
from semcorr.data.image_variants import ImageVariant
from semcorr.store import FeatureStore

log = logging.getLogger(__name__)

PLACES = ("auto", "gpu", "memory", "disk")
PIECE = 2**28  # bytes of page-locked memory allocated at once
ALIGNMENT = 64  # bytes
SHARE = 0.5  # of the free memory that may be taken: the rest is for activations and loaders
CGROUP = Path("/sys/fs/cgroup")


def allocate_pinned(size: int) -> Tensor:
    """Allocate bytes of page-locked memory, from which a GPU copies while the process goes on."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class PinnedMemory:
    """Page-locked memory for many tensors, taken in large pieces: PyTorch rounds each one up to a power of two.

    Args:
        total: Bytes expected in the end.
    """

    def __init__(self, total: int) -> None:
        self.piece = min(PIECE, 1 << max(0, total - 1).bit_length())
        self._free = torch.empty(0, dtype=torch.uint8)

    def store(self, value: Tensor) -> Tensor:
        """Return a copy of a dense tensor in page-locked memory, in its own layout."""
        size = -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._free):
            self._free = allocate_pinned(max(size, self.piece))
        part, self._free = self._free[: value.nbytes], self._free[size:]
        layout = torch.empty_like(value, device="meta").stride()  # of a dense tensor, its own
        return part.view(value.dtype).as_strided(value.shape, layout).copy_(value)


class FeatureCache:
    """Features of images, as one dictionary of tensors per image.

    The place is decided at the first values, from the memory that all images will need; and again, for those to come,
    when there are more of them than expected. What is cached stays where it is.

    Args:
        count: Number of images in the end.
        device: Device on which the values are used.
        place: One of `PLACES`; `auto` is the first of the others with room.
        dtype: Type of cached floating point values; None leaves it unchanged.
        processes: Number of processes of this machine that cache the same, each in memory of its own.
        origin: What computes the values; named where they are not finite.
    """

    def __init__(
        self,
        count: int,
        device: torch.device,
        place: str = "auto",
        dtype: torch.dtype | None = None,
        processes: int = 1,
        origin: str = "`backbone`",
    ) -> None:
        self.watch = FiniteWatch(origin)
        self.count, self.device, self.place, self.dtype, self.processes = count, device, place, dtype, processes
        self.entries: dict[str, dict[str, Tensor]] = {}
        self._places: tuple[str, ...] = PLACES[1:] if place == "auto" else (place,)  # left to choose from
        self._disk: FeatureStore | None = None
        self._pinned: PinnedMemory | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return self.entries[name]

    def add(self, names: Sequence[str], values: Mapping[str, Tensor]) -> None:
        """Add a batch of images.

        Args:
            names: Names of the images.
            values: Values by key, batch first.

        Raises:
            UserError: Values are not finite, of this batch or, on a GPU, of an earlier one.
        """
        cast = {key: cast_floating(value, self.dtype) for key, value in values.items()}
        self.watch.record(names, cast)
        size = sum(value[0].nbytes for value in cast.values())
        if self.place == "auto":
            self.place = self._choose_place(size)
        if self.place == "memory" and self.device.type == "cuda":
            self._pinned = self._pinned or PinnedMemory(self._remaining * size)
            for i, name in enumerate(names):
                self.entries[name] = {key: self._pinned.store(value[i]) for key, value in cast.items()}
            return
        device = self.device if self.place == "gpu" else torch.device("cpu")
        cast = {key: copy_to_device(value, device) for key, value in cast.items()}
        for i, name in enumerate(names):
            image_values = {key: value[i] for key, value in cast.items()}
            self.entries[name] = self._map_to_disk(name, image_values) if self.place == "disk" else image_values

    def put(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Add the values of one image, unchecked: on the device if all images fit there, else on the CPU.

        Args:
            name: Name of the image.
            values: Values by key, without a batch axis. Those that are mapped from a file stay so on the CPU.
        """
        if self.place == "auto" and self.device.type == "cuda":
            self.place = self._choose_place(sum(value.nbytes for value in values.values()))
        device = self.device if self.place == "gpu" else torch.device("cpu")
        self.entries[name] = {key: copy_to_device(value, device) for key, value in values.items()}

    def expect(self, names: Iterable[str]) -> None:
        """Expect these images beside those that are cached; if they are more than planned, choose their place again.

        The place then is the present one or a later one of `PLACES`: there may be no room left where the first went.
        """
        count = len(self.entries.keys() | set(names))
        if count > self.count:
            self.count = count
            if self.place in self._places and len(self._places) > 1:
                self._places, self.place = self._places[self._places.index(self.place) :], "auto"

    def stack(self, names: Sequence[str], device: torch.device, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Stack the values of a batch of images on the device: each is copied from where it is.

        Args:
            names: Names of the images, which are cached.
            device: Device of the result.
            keys: Keys of the values to stack; None: all.
        """
        entries = [self.entries[name] for name in names]
        return {
            key: torch.stack([entry[key].to(device, non_blocking=True) for entry in entries])
            for key in (entries[0] if keys is None else keys)
        }

    @property
    def _remaining(self) -> int:
        """Number of images to come."""
        return max(1, self.count - len(self.entries))

    def _choose_place(self, size: int) -> str:
        """Return the first place with room for all images to come, of `size` bytes each."""
        needed = self._remaining * size
        for place in self._places:
            if place == "gpu" and self.device.type == "cuda":
                if needed <= SHARE * torch.cuda.mem_get_info(self.device)[0]:
                    return place
            elif place == "memory" and needed * self.processes <= SHARE * free_memory():
                return place
        return "disk"

    def _map_to_disk(self, name: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write values to a folder that is removed with this object, and map them from there."""
        if self._disk is None:
            home = Path(tempfile.gettempdir())
            remove_parts(home)  # of runs that were killed
            folder = part_path(home / "semcorr")
            folder.mkdir(mode=0o700)
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._disk = FeatureStore(folder, {})
            warn_spilling_to_disk(home)
        entry = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        return (self._disk.get(entry) if self._disk.put(entry, values, name) else None) or values


@cache
def warn_spilling_to_disk(parent: Path) -> None:
    """Warn once per process that features go to a temporary folder."""
    log.warning(
        "features of all images do not fit in memory: they are in %s until the run ends. "
        "store.dtype=float16 halves them, store.root=DIR keeps them for other runs",
        parent,
    )


def copy_to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; return it as it is if it is there."""
    return value.to(device)


def cast_floating(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Cast a floating point tensor to `dtype`; return any other as it is, and all if `dtype` is None."""
    return value if dtype is None or not value.is_floating_point() else value.to(dtype)


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, of the machine's and of its container's."""
    free = int(psutil.virtual_memory().available)
    try:  # a container's limit, of which the machine's figure knows nothing; page cache counts as used there
        limit = (CGROUP / "memory.max").read_text().strip()
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(stat["file"])
    except (OSError, KeyError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


class SweepFeatureCache:
    """Cache of the features of one test, which the jobs of a sweep pass to each other."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._images: list[tuple[object, ...]] = []
        self._features: FeatureCache | None = None

    def __call__(self, key: str, variants: Sequence[ImageVariant], make: Callable[[], FeatureCache]) -> FeatureCache:
        """Return the cached features if key and images are the same; else `make()`, which takes their place.

        Args:
            key: Everything that features depend on but the image.
            variants: Images of the features.
            make: Function that computes the features.
        """
        images = [_identity(image) for image in variants]
        if self._features is not None and self._key == key and self._images == images:
            return self._features
        self.clear()  # first, since there may not be room for both
        self._key, self._images, self._features = key, images, make()
        return self._features

    def clear(self) -> None:
        """Free the cached features."""
        self._key, self._images, self._features = None, [], None


def _identity(image: ImageVariant) -> tuple[object, ...]:
    """Identify the content of an image: by the next job, its name alone may belong to another file."""
    record = image.record
    try:
        status = record.path.stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # opening the file raises the error
        state = None
    change = record.corruption.identity(record.name) if record.corruption else None
    return image.name, record.path, record.upright, record.mirrored, change, state
