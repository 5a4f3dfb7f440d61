"""Turn the videos of an evaluation into the GIFs of `gallery.md`, which pages of a repository show inline.

    gatito eval demo/run --episodes 10 --prompt none,beginning --videos 12 --out demo/filmed
    python docs/make_gallery.py demo/filmed/videos docs/gallery

Each becomes at most 40 frames of at most 144 pixels in 32 colours, of the video's own duration.
"""

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAMES, SIDE, COLOURS = 40, 144, 32
LONGEST_S = 6.0
"""Longer videos play faster."""


def make_gif(video: Path, target: Path) -> None:
    """Write a video's frames as a GIF."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate or 30)
    shown = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    seconds = min(LONGEST_S, len(frames) / rate)
    pictures = []
    for i in shown:
        frames[i].thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        pictures.append(frames[i].quantize(COLOURS, dither=Image.Dither.NONE))
    first, *others = pictures
    first.save(target, save_all=True, append_images=others, duration=max(20, 1000 * seconds / len(pictures)), loop=0)


def main() -> None:
    """Turn every video of the folder that was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for video in sorted(arguments.videos.glob("*.mp4")):
        target = arguments.out / f"{video.stem}.gif"
        make_gif(video, target)
        print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
