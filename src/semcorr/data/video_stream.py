"""Frames of a video file that PyAV decodes; one that is damaged, or builds on one that is, is an error in its place."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from semcorr.core.errors import UserError
from semcorr.data.frame_decoder import FrameDecoder, give_reason
from semcorr.data.pictures import Picture
from semcorr.data.video_frame import REMEDY

if TYPE_CHECKING:  # an optional package
    from av.container import InputContainer
    from av.video import VideoStream

log = logging.getLogger(__name__)

STRICT = {"err_detect": "crccheck+explode"}  # otherwise libav paints what it cannot read, and does not say so
LENIENT = ("tiff",)  # decoders to which, if strict, a tag that they do not know is damage
WITH_LENGTH = {"matroska", "webm", "flv", "asf", "mov"}  # formats whose head says how long a file is


def decode_video(path: Path) -> Iterator[Picture | UserError]:
    """Decode the frames of the first video stream of a file, one at a time, upright.

    A frame that is damaged, or builds on one that is, is given as the reason why it is left out. If it is not known
    which number the frames after it have, it is the last.

    Args:
        path: The file.

    Raises:
        UserError: The file is not a video, or a frame is turned by other than a multiple of 90 degrees.
    """
    import av

    decoder = FrameDecoder(path)
    try:  # by its absolute path: of a relative one, what is before a colon would be a protocol
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:  # decoding without a codec would end the process
                raise UserError(f"{path} has no stream of video that can be decoded. {REMEDY}")
            stream.codec_context.options = {} if stream.codec_context.name in LENIENT else STRICT
            stream.codec_context.thread_count = 1  # with several, errors of slices and of frames are passed over
            _warn_transparency(path, stream)
            yield from _decode_stream(decoder, container, stream)
    except av.FFmpegError as error:
        if not decoder.has_begun:
            raise UserError(f"{path} is damaged or no video ({give_reason(error)}). {REMEDY}") from None
        yield decoder.describe(give_reason(error), last=True)


def _decode_stream(
    decoder: FrameDecoder, container: "InputContainer", stream: "VideoStream"
) -> Iterator[Picture | UserError]:
    """Decode the frames of a stream; warn in the end of a file that says that it has more."""
    start, end = float("inf"), float("-inf")
    for packet in container.demux():  # of all streams: sound may be longer
        if packet.pts is not None and packet.time_base:
            start = min(start, float(packet.pts * packet.time_base))
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            # transport streams mark the packets beside a joint, which are whole
            yield from decoder.decode(packet, packet.is_corrupt and container.format.name != "mpegts")
            if decoder.is_lost:
                return
    yield from decoder.finish()
    _warn_missing(decoder, container, stream, max(0.0, end - start))


def _warn_transparency(path: Path, stream: "VideoStream") -> None:
    """Warn of WebM's transparency, which is a second stream, and which libav's own decoders leave out."""
    has_alpha = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    if has_alpha and stream.codec_context.name in ("vp8", "vp9"):
        log.warning("%s: its transparency is not read: colours are seen where it hides them. Or give its frames", path)


def _warn_missing(decoder: FrameDecoder, container: "InputContainer", stream: "VideoStream", length: float) -> None:
    """Warn of a file that has fewer frames, or is shorter, than it says.

    Args:
        decoder: Decoder of the frames, at their end.
        container: The file.
        stream: Its stream of video.
        length: Seconds from the first packet of the file to the end of the last.
    """
    path, count = decoder.path, decoder.number + 1
    expected = stream.frames or decoder.count_packets()
    if expected not in (0, count):  # 0: the file does not say
        log.warning(
            "%s says that it has %d frames, and %d are decoded: other tools may number them otherwise",
            path,
            expected,
            count,
        )
    stated_length = (container.duration or 0) / 1e6
    has_length = not stream.frames and WITH_LENGTH.intersection(container.format.name.split(","))
    slack = 0.1 + 2 * length / max(1, count)  # sound is rounded, frames may be irregular
    if has_length and count and length < stated_length - slack:
        log.warning(
            "%s says that it lasts %.2f seconds, and ends after %.2f, with %d frames: the rest is cut off or damaged",
            path,
            stated_length,
            length,
            count,
        )
