"""Images of documents: their size, their mode, and what is refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.ExifTags import Base

from gatito.errors import UserError
from gatito.tokenizers.images import ImageConfig, checked_image, fitted_size, read_image
from gatito.tokenizers.patches import grid

CONFIG = ImageConfig()


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(image: Image.Image, form: str = "PNG", config: ImageConfig = CONFIG, **options: object) -> np.ndarray:
    return read_image(encoded(image, form, **options), config, "here")


# Size


@pytest.mark.parametrize(
    ("size", "most", "fitted"),
    [
        ((48, 96), 8, (32, 64)),
        ((40, 50), 8, (32, 40)),
        ((224, 224), 196, (224, 224)),
        ((225, 224), 196, (224, 223)),
        ((480, 640), 196, (192, 256)),
        ((17, 5), 196, (17, 5)),
        ((16, 4), 1, (16, 4)),
        ((8, 8), 196, (16, 16)),
        ((4, 8), 196, (8, 16)),
        ((1, 15), 1, (1, 16)),
        ((1, 100_000), 196, (1, 3136)),
        ((100_000, 3), 4, (64, 1)),
    ],
)
def test_images_are_scaled_as_the_rule_says(size: tuple[int, int], most: int, fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, most) == fitted


def test_every_size_fits_its_patches_and_as_many_as_can_be_are_used() -> None:
    rng = np.random.default_rng(0)
    scaled = 0
    for height, width, most in zip(*rng.integers(1, 700, (2, 500)), rng.integers(1, 300, 500), strict=True):
        h, w = fitted_size(int(height), int(width), int(most))
        rows, columns = grid(h, w)
        assert rows * columns <= most
        if (h, w) == (height, width) or max(height, width) < 16:
            continue
        scaled += 1
        assert h <= height
        assert w <= width
        assert abs(h - w * height / width) <= max(1, height / width)  # within a pixel of the aspect
        more = 1.07  # whatever is this much larger takes a row or a column more, and does not fit
        tight = -(-int(h * more + 16) // 16) * -(-int(w * more + 16) // 16)
        assert tight > most
    assert scaled > 150


def test_an_image_within_the_cap_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 60, 3), np.uint8)
    np.testing.assert_array_equal(read(Image.fromarray(pixels)), pixels)
    np.testing.assert_array_equal(checked_image(pixels, CONFIG, "here"), pixels)


def test_a_small_image_grows_by_whole_pixels() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(read(Image.fromarray(pixels))[..., 0], pixels.repeat(2, 0).repeat(2, 1))


def test_a_large_photograph_that_libjpeg_scales_has_the_size_of_the_rule() -> None:
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    found = read(Image.fromarray(np.broadcast_to(gradient, (901, 1600))), "JPEG")
    assert found.shape == (*fitted_size(901, 1600, 196), 1)
    expected = np.linspace(0, 255, found.shape[1])
    assert np.abs(found[..., 0].astype(float) - expected).max() < 3


# Modes

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey_stays_one_channel() -> None:
    np.testing.assert_array_equal(read(Image.fromarray(GREY))[..., 0], GREY)


def test_black_and_white_is_zero_and_255() -> None:
    found = read(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE))
    np.testing.assert_array_equal(found[..., 0], np.where(GREY >= 128, 255, 0))


def test_sixteen_bits_lose_their_lower_eight() -> None:
    deep = GREY.astype(np.uint16) * 256 + 77
    np.testing.assert_array_equal(read(Image.fromarray(deep))[..., 0], GREY)
    np.testing.assert_array_equal(read(Image.fromarray(deep), "TIFF")[..., 0], GREY)


def test_a_palette_becomes_its_colours() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8], pixels[8:] = (200, 30, 40), (10, 20, 250)
    image = Image.fromarray(pixels).quantize(2)
    assert image.mode == "P"
    np.testing.assert_array_equal(read(image), pixels)


def test_alpha_is_applied_over_white() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:8, :, 3], pixels[8:, :8, 3], pixels[8:, 8:, 3] = 255, 0, 51
    found = read(Image.fromarray(pixels))
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[15, 0].tolist() == [255, 255, 255]
    assert found[15, 15].tolist() == [244, 204, 204]
    np.testing.assert_array_equal(checked_image(pixels, CONFIG, "here"), found)
    grey = Image.merge("LA", [Image.fromarray(GREY)] * 2)
    assert read(grey)[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.fromarray(np.zeros((16, 16), np.uint8), "L").convert("P")
    assert read(image, "GIF", transparency=0).min() == 255


def test_cmyk_becomes_rgb() -> None:
    found = read(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_exif_orientation_is_applied(form: str, mode: str) -> None:
    pixels = np.zeros((32, 64), np.uint8)
    pixels[:16, :16] = 255  # above on the left, as it is stored
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # turned by 90 degrees clockwise when shown
    found = read(Image.fromarray(pixels).convert(mode), form, exif=exif)
    assert found.shape[:2] == (64, 32)
    assert found[:12, 20:].min() > 200
    assert found[20:].max() < 50


def test_a_scaled_photograph_is_turned_too() -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    assert read(Image.new("RGB", (1600, 400)), "JPEG", exif=exif).shape == (*fitted_size(400, 1600, 196)[::-1], 3)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (16, 16), value) for value in (50, 200)]
    assert (read(frames[0], "GIF", save_all=True, append_images=frames[1:]) == 50).all()


# What is refused


def test_an_image_over_the_pixel_cap_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (300, 200)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    message = r"here: an image of 300 x 200 pixels, allowed 50000 in all; scale it, or raise images\.max_pixels"
    with pytest.raises(UserError, match=message):
        read_image(content, ImageConfig(max_pixels=50_000), "here")
    with pytest.raises(UserError, match=message):
        checked_image(np.zeros((200, 300, 1), np.uint8), ImageConfig(max_pixels=50_000), "here")


def png_that_states(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_000, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_what_it_states(side: int) -> None:
    with pytest.raises(UserError, match=r"^here: an image of .* pixels"):
        read_image(png_that_states(side, side), CONFIG, "here")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(form: str) -> None:
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), form)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(UserError, match=r"^here: "):
            read_image(content[: int(len(content) * share)], CONFIG, "here")


def test_a_format_that_would_start_a_program_is_refused() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
    with pytest.raises(UserError, match=r"here: no image of a format that is read; allowed are BMP, GIF, JPEG"):
        read_image(script, CONFIG, "here")


def test_floats_are_refused() -> None:
    with pytest.raises(UserError, match=r"here: an image of floats, allowed are 1, 8 and 16 bits"):
        read(Image.fromarray(np.zeros((16, 16), np.float32)), "TIFF")


def test_numbers_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(UserError, match=r"here: an image of values -5 to 0, allowed 0 to 65535"):
        read(Image.fromarray(np.array([[-5, 0]] * 16, np.int32)), "TIFF")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here: the image cannot be read \(.*none\.png is missing\)"):
        read_image(tmp_path / "none.png", CONFIG, "here")


@pytest.mark.parametrize("most", [0, 513])
def test_a_cap_that_no_image_could_keep_is_refused(most: int) -> None:
    with pytest.raises(UserError, match=rf"images\.max_patches is {most}, allowed 1 to 512"):
        ImageConfig(max_patches=most)
