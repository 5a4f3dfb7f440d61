"""Any image to pixels that become patches: one rule for its size, its mode and what is refused.

- **Size.** The aspect is kept. An image of more than `max_patches` patches is scaled down to the largest size that
  fits; one whose longer side is below 16 pixels is scaled up to 16, and no other is. Sides that are no multiples of
  16 are padded with black at the bottom and the right, by `to_patches`.
- **Mode.** The EXIF orientation is applied. Grey stays grey; 16 bits lose their lower 8; alpha is applied over white;
  palettes, CMYK, YCbCr and the like become RGB. Of an animation the first frame is taken.
- **Refused.** More than `max_pixels` by the header, before anything is decoded; files that end early; floats; formats
  that are not in `FORMATS`, some of which would start a program.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from gatito.errors import UserError, reason_of
from gatito.tokenizers.fields import image_problem
from gatito.tokenizers.patches import PATCH, grid
from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""As PIL names them."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the names of image files."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How large the images of documents may be."""

    max_patches: int = 196
    """Patches of 16 x 16 pixels that an image may take, as many as one of 224 x 224 has; larger ones are scaled."""
    max_pixels: int = 1 << 26
    """Pixels that an image file may hold before it is scaled."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_patches <= NUM_LOCAL_POSITIONS:
            raise UserError(f"images.max_patches is {self.max_patches}, allowed 1 to {NUM_LOCAL_POSITIONS}")
        if self.max_pixels < 1:
            raise UserError(f"images.max_pixels is {self.max_pixels}, allowed 1 and more")


def fitted_size(height: int, width: int, max_patches: int) -> tuple[int, int]:
    """The height and width to which an image is scaled, see above.

    For 8 patches, 48 x 96 (3 x 6 patches) becomes 32 x 64 (2 x 4); 40 x 50 (3 x 4) becomes 32 x 40 (2 x 3).
    """
    longer = max(height, width)
    if longer < PATCH:
        return max(1, round(height * PATCH / longer)), max(1, round(width * PATCH / longer))
    rows, columns = grid(height, width)
    if rows * columns <= max_patches:
        return height, width
    heights = PATCH * np.arange(1, max_patches + 1)
    widths = PATCH * (max_patches // np.arange(1, max_patches + 1))
    best = int(np.argmax(np.minimum(heights / height, widths / width)))
    scale = min(heights[best] / height, widths[best] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def read_image(source: Path | bytes, config: ImageConfig, where: str) -> NDArray[np.uint8]:
    """The pixels (H, W, 1 or 3) of an image file, or of its bytes, converted and scaled by the rule.

    Raises `UserError`, beginning with `where`, for what is refused.
    """
    try:
        with _opened(source) as file, Image.open(file, formats=FORMATS) as image:
            _check_pixels(image, config, where)
            return _pixels(image, config, where)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: no image of a format that is read; allowed are {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
        raise UserError(
            f"{where}: an image of far more than {config.max_pixels} pixels, a decompression bomb; leave it out"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # what PIL raises for broken files
        raise UserError(
            f"{where}: the image cannot be read ({reason_of(error)}); mend the file or leave it out"
        ) from None


def checked_image(image: NDArray[np.uint8], config: ImageConfig, where: str) -> NDArray[np.uint8]:
    """Pixels (H, W, 1, 3 or 4) that are in memory already, scaled by the rule; raises `UserError` for others."""
    problem = image_problem(image.shape, str(image.dtype))
    if problem:
        raise UserError(f"{where}: {problem}")
    height, width = image.shape[:2]
    if height * width > config.max_pixels:
        raise UserError(f"{where}: {_too_large(width, height, config)}")
    if fitted_size(height, width, config.max_patches) == (height, width) and image.shape[2] != 4:
        return image
    return _pixels(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), config, where)


def pixels_of(image: Image.Image, config: ImageConfig, where: str) -> NDArray[np.uint8]:
    """The pixels of an image that PIL has opened, see `read_image`."""
    try:
        _check_pixels(image, config, where)
        return _pixels(image, config, where)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: the image cannot be read ({reason_of(error)}); mend it or leave it out") from None


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _check_pixels(image: Image.Image, config: ImageConfig, where: str) -> None:
    if image.width * image.height > config.max_pixels:
        raise UserError(f"{where}: {_too_large(image.width, image.height, config)}")


def _too_large(width: int, height: int, config: ImageConfig) -> str:
    return (
        f"an image of {width} x {height} pixels, allowed {config.max_pixels} in all; scale it, or raise "
        "images.max_pixels"
    )


def _pixels(image: Image.Image, config: ImageConfig, where: str) -> NDArray[np.uint8]:
    height, width = fitted_size(image.height, image.width, config.max_patches)
    exif = image.getexif()
    if image.format == "JPEG" and width < image.width:
        # libjpeg decodes at 1/2, 1/4 or 1/8 of the size where that is still as large as what is asked for.
        image.draft(image.mode, (width, height))
    image = _converted(image, where)
    if (height, width) != (image.height, image.width):
        grows = height > image.height
        how = Image.Resampling.NEAREST if grows else Image.Resampling.HAMMING
        image = image.resize((width, height), how, reducing_gap=None if grows else 1.5)
    if exif.get(Base.Orientation, 1) != 1:
        image.info["exif"] = exif.tobytes()  # what was converted has lost it
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _converted(image: Image.Image, where: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        converted = Image.new("RGB", layer.size, "white")
        converted.paste(layer, mask=layer.getchannel("A"))
        return converted
    if image.mode == "F":
        raise UserError(f"{where}: an image of floats, allowed are 1, 8 and 16 bits; convert it")
    if image.mode in (*_SIXTEEN_BITS, "I"):
        return _of_sixteen_bits(image, where)
    return image.convert("L" if image.mode == "1" else "RGB")


def _of_sixteen_bits(image: Image.Image, where: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() >= 1 << 16:
        raise UserError(
            f"{where}: an image of values {values.min()} to {values.max()}, allowed 0 to 65535 of 16 bits; convert it"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
