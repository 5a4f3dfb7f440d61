"""Frames of a video at given times."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatito.data.formats.columns import PIXELS
from gatito.errors import UserError


def read_frames(file: Path, times: NDArray[np.float64], tolerance: float, where: str) -> NDArray[np.uint8]:
    """The frames (T, H, W, 3) that are shown at ascending times (T,), in seconds and within a tolerance.

    Raises `UserError` where the video is cut off or no video, too large, or has no frame at a time.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError(f"{where}: a video is read by PyAV: pip install 'gatito[video]'") from None
    frames: list[NDArray[np.uint8]] = []
    try:
        # MP4 alone, as LeRobot writes: other containers may name files, or addresses, of their own.
        with av.open(str(file), format="mp4", options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > PIXELS:
                raise UserError(f"{where}: frames of {stream.width}x{stream.height}, allowed {PIXELS} pixels")
            if len(times) and stream.time_base is not None:
                container.seek(int(times[0] / stream.time_base), backward=True, stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.width * frame.height > PIXELS:
                    raise UserError(f"{where}: {file} has a frame without a time, or of too many pixels")
                while len(frames) < len(times) and frame.time >= times[len(frames)] - tolerance:
                    if frame.time > times[len(frames)] + tolerance:
                        raise UserError(
                            f"{where}: {file} has no frame at {times[len(frames)]:.3f} s; download it again"
                        )
                    frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                if len(frames) == len(times):
                    break
    except (FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{where}: {file} cannot be read ({error}); download it again") from None
    if len(frames) < len(times):
        raise UserError(f"{where}: {file} ends before {times[len(frames)]:.3f} s; it is cut off, download it again")
    return np.stack(frames)
