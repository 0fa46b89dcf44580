"""Pictures of datasets: PNG in tables, and videos by way of PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

TOLERANCE = 1e-3  # seconds between the time of a row and that of its picture
# H.264 at a rate factor that loses little; every second frame stands for itself, so that any is found quickly, as in
# LeRobot's own videos.
CODEC, OPTIONS = "libx264", {"crf": "12", "g": "2", "preset": "medium"}


def encode_png(frame: UInt8[np.ndarray, "c y x"]) -> bytes:
    """A picture of one or three channels, without loss."""
    pixels = frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def decode_image(data: bytes, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "c y x"]:
    """A picture of ``shape`` (c, y, x).

    Raises:
        ValueError: if the bytes are no such picture; they are not decoded if they say that they are larger.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (width, height):
                raise ValueError(f"it has {image.size[1]} x {image.size[0]} pixels, not {height} x {width}")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise ValueError(f"a picture cannot be read ({error})") from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_video(
    file: Path, shape: tuple[int, int, int], times: Sequence[float]
) -> UInt8[np.ndarray, "t c y x"]:
    """The pictures of a video at given times, one after the other.

    Args:
        file: of the video.
        shape: ``(c, y, x)`` of a picture.
        times: in seconds, rising.

    Raises:
        ValueError: if the video is damaged, its pictures have another size, or none is there at one of the times.
    """
    av = import_av()
    channels, height, width = shape
    found = np.empty((len(times), *shape), np.uint8)
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            stream = container.streams.video[0]
            if (stream.height, stream.width) != (height, width):
                raise ValueError(f"it has {stream.height} x {stream.width} pixels, not {height} x {width}")
            pictures = _from(container, stream, times[0])
            time, frame = next(pictures)
            for i, wanted in enumerate(times):
                while time < wanted - TOLERANCE:
                    time, frame = next(pictures)
                if time > wanted + TOLERANCE:
                    raise ValueError(f"it has no picture at {wanted:.3f} s")
                pixels = frame.to_ndarray(format="gray" if channels == 1 else "rgb24")
                found[i] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    except StopIteration:
        raise ValueError(f"{file} ends before {times[-1]:.3f} s") from None
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return found


def _from(container: Any, stream: Any, first: float) -> Iterator[tuple[float, Any]]:
    """(time, picture) from the last key frame before ``first`` on."""
    container.seek(max(int((first - TOLERANCE) / stream.time_base), 0), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield float(frame.pts * stream.time_base), frame


class VideoWriter:
    """A video that grows episode by episode.

    Args:
        file: to write.
        shape: ``(c, y, x)`` of a picture, three channels, even sides.
        fps: frames a second.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int], fps: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._av = import_av()
        self._out = self._av.open(str(file), "w", format="mp4")
        self._stream = self._out.add_stream(CODEC, rate=fps, options=OPTIONS)
        _, self._stream.height, self._stream.width = shape
        self._stream.pix_fmt = "yuv420p"
        self._frame_time = Fraction(1, fps)
        self.frames = self.bytes = 0

    def add(self, frames: UInt8[np.ndarray, "t c y x"]) -> None:
        """Appends an episode, whose first picture stands for itself."""
        for i, pixels in enumerate(frames):
            picture = self._av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels.transpose(1, 2, 0)), format="rgb24"
            )
            picture.pts, picture.time_base = self.frames, self._frame_time
            if i == 0:
                picture.pict_type = self._av.video.frame.PictureType.I
            self.frames += 1
            self._write(picture)

    def close(self) -> None:
        """Ends the video; it cannot be read before."""
        self._write(None)
        self._out.close()

    def _write(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            self.bytes += packet.size
            self._out.mux(packet)


def import_av() -> Any:
    """PyAV.

    Raises:
        ImportError: with the extra that brings it, if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('PyAV is not installed; pip install "jepa-rl[lerobot]"') from error
    return av
