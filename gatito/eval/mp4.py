"""H.264 videos that browsers play, written frame by frame. PyAV, the extra `video`, brings the encoder."""

from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from gatito.errors import UserError

QUALITY = "20"
"""x264's constant rate factor: 18 looks like the original, 28 shows blocks."""


def pyav() -> ModuleType:
    """PyAV; raises `UserError` that names the extra where it is missing."""
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install 'gatito[video]'") from None
    return av


class Mp4Writer:
    """A video file, whole or not at all: `with Mp4Writer(path, fps) as video: video.add(frame)`.

    A frame is encoded when it is added and not kept. The encoder looks a few ahead, however long the video is.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Raises `UserError` where PyAV is missing; an existing file stays until the new one is whole."""
        self.path, self.fps = path, Fraction(fps).limit_denominator(1000)
        self._av = pyav()
        self._temporary = path.with_name(f"{path.name}.partial")
        self._shape: tuple[int, ...] | None = None
        self._stream: Any = None

    def __enter__(self) -> "Mp4Writer":
        # What players read first is moved to the front, so that a page need not load all of it.
        self._file = self._av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        return self

    def add(self, frame: np.ndarray) -> None:
        """Encode the next frame (H, W, 3) uint8; raises `UserError` for one of another size than the first.

        Where H or W is odd the last row or column is doubled: the colours of H.264 have half the resolution.
        """
        if self._shape is None:
            self._shape = frame.shape
            self._stream = self._begin(frame.shape[0] + frame.shape[0] % 2, frame.shape[1] + frame.shape[1] % 2)
        if frame.shape != self._shape:
            raise UserError(
                f"{self.path}: a frame {frame.shape}, the first was {self._shape}; all must have one size"
            )
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
        self._file.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(even, format="rgb24")))

    def _begin(self, height: int, width: int) -> Any:
        stream = self._file.add_stream("libx264", rate=self.fps, options={"crf": QUALITY})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine; rendering takes longer anyway
        # The colours are converted by BT.601: said in the file, or players may assume another for large frames.
        stream.codec_context.colorspace = self._av.video.reformatter.Colorspace.ITU601
        stream.codec_context.color_range = self._av.video.reformatter.ColorRange.MPEG
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._stream is not None and error is None:
                self._file.mux(self._stream.encode())
            self._file.close()
            if error is None:
                if self._stream is None:
                    raise UserError(f"{self.path}: a video without frames; add one at least")
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
