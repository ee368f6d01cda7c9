"""A decoder of video that leaves out what is damaged, and gives every other frame its number."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture
from semcorr.data.video_frame import REMEDY, to_picture

if TYPE_CHECKING:  # an optional package
    from av import Packet, VideoFrame


def give_reason(error: Exception) -> str:
    """Return the first line of an error, or its kind."""
    return (str(getattr(error, "strerror", None) or error).strip() or type(error).__name__).splitlines()[0]


class FrameDecoder:
    """Decodes packets, and numbers frames by the times of the packets, so that a damaged one does not move the others.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = -1  # of the last frame
        self.has_begun = False  # whether there was a packet from which decoding can begin
        self.is_lost = False  # whether the numbers of the frames to come are not known
        self._times: list[int] = []  # of packets, in order
        self._has_times = True  # whether all have one
        self._first_reason: str | None = None  # why packets before the first key frame were not decoded
        self._last_time: int | None = None  # time of the last frame
        self._damage_time: int | None = None  # last time of the packets that were read when a frame was damaged

    def describe(self, reason: str, last: bool = False) -> UserError:
        """Return the error of the frame after the last one.

        Args:
            reason: What is wrong with it.
            last: Whether no frame after it is read.
        """
        place = f"{self.path}, after frame {self.number}" if self.number >= 0 else f"{self.path}"
        rest = "; it is the last that is read" if last else ""
        return UserError(f"{place} is damaged or no video ({reason}){rest}. {REMEDY}")

    def decode(self, packet: "Packet", is_corrupt: bool) -> Iterator[Picture | UserError]:
        """Decode a packet.

        Args:
            packet: The packet.
            is_corrupt: Whether it is marked as damaged.
        """
        import av

        frames: list[VideoFrame] = []
        reason = "a part is missing" if is_corrupt else None
        self._note_time(packet)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            reason = give_reason(error)
        if reason is not None and (self.has_begun or packet.is_keyframe):
            yield from self._break(reason)
        elif reason is not None:  # a recording may begin before its first key frame, which players begin with
            self._first_reason = reason
            self._times.clear()
        self.has_begun |= packet.is_keyframe or bool(frames)
        for frame in frames:
            if frame.is_corrupt:
                yield from self._break("a part is missing")
            if not self.is_lost:
                yield from self._take(frame)

    def finish(self) -> Iterator[UserError]:
        """Give the frames after the last that could be read."""
        if self._damage_time is not None:
            yield from self._leave_out(len(self._times))
        elif not self.has_begun and self._first_reason is not None:
            yield self.describe(self._first_reason, last=True)

    def count_packets(self) -> int:
        """Count the packets, where each is a frame; otherwise, or where they cannot be told apart, return 0."""
        is_numbered = self._last_time is not None and self._find(self._last_time) == self.number
        return len(self._times) if self._has_times and is_numbered else 0

    def _note_time(self, packet: "Packet") -> None:
        if packet.size and not packet.is_discard:  # one of no bytes ends the stream
            if packet.pts is None:
                self._has_times = False
            else:
                insort(self._times, packet.pts)

    def _break(self, reason: str) -> Iterator[UserError]:
        """Leave the next frame out, and those after it up to the next that builds on none before it."""
        if self._damage_time is None:
            self.is_lost = not (self.count_packets() or (self.number < 0 and self._has_times and self._times))
            yield self.describe(reason, last=self.is_lost)
            self.number += 1
        if not self.is_lost:
            self._damage_time = self._times[-1]

    def _take(self, frame: "VideoFrame") -> Iterator[Picture | UserError]:
        """Make a picture of a frame, with its number, unless it may build on a damaged one."""
        number = self.number + 1
        if self._damage_time is not None:
            if not frame.key_frame or frame.pts is None or frame.pts <= self._damage_time:
                return
            number = self._find(frame.pts)
            yield from self._leave_out(number)
            self._damage_time = None
        if self.number < 0 and frame.pts is not None:  # packets before the first frame could not be decoded
            del self._times[: self._find(frame.pts)]
        self.number, self._last_time = number, frame.pts
        yield to_picture(frame, f"{self.path}, frame {number}")

    def _find(self, time: int) -> int:
        """Find the number of the frame of a time."""
        return bisect_left(self._times, time)

    def _leave_out(self, end: int) -> Iterator[UserError]:
        """Give the frames before a number that are left out."""
        for number in range(self.number + 1, end):
            yield UserError(f"{self.path}, frame {number} builds on a damaged one, or is damaged")
            self.number = number
