"""Opening pictures: every kind comes out as upright 8-bit RGB, every broken one as one clear line."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.pictures import list_pictures, open_picture, picture_size

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(mode: str = "RGB") -> Image.Image:
    """40x20, left half red, right half blue."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image.convert(mode)


def near(pixel: object, colour: tuple[int, int, int], within: int = 30) -> bool:
    return bool(np.abs(np.subtract(pixel, colour)).max() <= within)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"),
        ("a.jpg", "RGB"),
        ("a.bmp", "RGB"),
        ("a.webp", "RGB"),
        ("a.tif", "RGB"),
        ("p.png", "P"),
        ("p.gif", "P"),
        ("cmyk.jpg", "CMYK"),
        ("cmyk.tif", "CMYK"),
        ("rgba.png", "RGBA"),
        ("ycc.tif", "YCbCr"),
    ],
)
def test_colours_survive_every_format_and_mode(tmp_path: Path, name: str, mode: str) -> None:
    halves(mode).save(tmp_path / name)
    image = open_picture(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert near(image.getpixel((5, 10)), RED)
    assert near(image.getpixel((35, 10)), BLUE)
    assert picture_size(tmp_path / name) == Size(40, 20)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_picture_and_size(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().save(tmp_path / name, exif=exif, quality=95)
    image = open_picture(tmp_path / name)
    assert picture_size(tmp_path / name) == Size(*image.size)
    assert image.size == ((20, 40) if orientation >= 5 else (40, 20))
    # Where the red half of the stored picture is seen: left, right, top or bottom.
    seen = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    width, height = image.size
    place = {"left": (3, height // 2), "right": (width - 3, height // 2), "top": (width // 2, 3)}
    assert near(image.getpixel(place.get(seen, (width // 2, height - 3))), RED)
    assert image.getexif().get(0x0112) in (None, 1)


@pytest.mark.parametrize(("stored", "seen"), [(0, 0), (65535, 255), (32768, 128), (257, 1)])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, stored: int, seen: int) -> None:
    Image.fromarray(np.full((4, 4), stored, np.uint16)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == (seen,) * 3


@pytest.mark.parametrize(("stored", "seen"), [([0.0, 1.0], [0, 255]), ([0.0, 128.0], [0, 128])])
def test_float_grey_is_0_to_1_or_0_to_255(tmp_path: Path, stored: list[float], seen: list[int]) -> None:
    Image.fromarray(np.array([stored], np.float32)).save(tmp_path / "a.tif")
    assert [pixel[0] for pixel in np.asarray(open_picture(tmp_path / "a.tif"))[0]] == seen


def test_grey_without_a_known_range_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 1000.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match=r"a\.tif: grey values from -1 to 1000, expected 0\.\.255; convert it to 8 bits"
    ):
        open_picture(tmp_path / "a.tif")


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (4, 4), 0)
    palette.save(tmp_path / "b.png", transparency=0)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "c.png")
    for name in "abc":
        assert open_picture(tmp_path / f"{name}.png").getpixel((1, 1)) == (255, 255, 255)


def test_one_bit_and_grey(tmp_path: Path) -> None:
    for mode in ("1", "L"):
        Image.new(mode, (4, 4), 255 if mode == "L" else 1).save(tmp_path / "a.png")
        assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert near(open_picture(tmp_path / "a.gif").getpixel((4, 4)), RED)


def test_open_files_are_taken_too() -> None:
    stored = io.BytesIO()
    halves().save(stored, "PNG")
    stored.seek(0)
    assert picture_size(stored) == Size(40, 20)
    stored.seek(0)
    assert open_picture(stored).size == (40, 20)


def _missing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("hello")


def _empty(path: Path) -> None:
    path.touch()


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("opening", [open_picture, picture_size])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, r"data\.jsonl:7: .*a\.png: no such picture; check the path"),
        (_text, r"data\.jsonl:7: .*a\.png: not a picture that Pillow can read; convert it to PNG or JPEG"),
        (_empty, r"a\.png: not a picture that Pillow can read"),
        (_folder, r"a\.png: is a folder, expected a picture file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_picture_says_so(
    tmp_path: Path, opening: Callable[..., object], make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        opening(tmp_path / "a.png", "data.jsonl:7")


def test_pictures_of_absurd_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match=r"a\.png: too many pixels .*; scale it down first"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_pictures_are_refused_when_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    _truncated(path)
    with pytest.raises(DataError, match=rf"a\.{suffix}: (damaged or truncated picture|not a picture)"):
        open_picture(path)


def test_the_size_is_read_without_decoding(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        _truncated(tmp_path / f"a.{suffix}")
        assert picture_size(tmp_path / f"a.{suffix}") == Size(64, 64)


def test_rotation_at_the_end_of_a_png_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    halves().save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    (tmp_path / "a.png").write_bytes(content.replace(chunk, b"").replace(content[-12:], chunk + content[-12:]))
    assert open_picture(tmp_path / "a.png").size == (20, 40)
    assert picture_size(tmp_path / "a.png") == Size(20, 40)


def test_nothing_given() -> None:
    with pytest.raises(DataError, match="no picture given; expected the path of a picture file"):
        open_picture("")


def test_listing_a_folder(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.png", "b.JPG"]


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A PNG of RGB values of `depth` bits, written by hand: Pillow writes no 16-bit colours and no absurd sizes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colours_are_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 32896, 0) * 3
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, row * 2))
    assert open_picture(tmp_path / "a.png").getpixel((2, 1)) == (255, 128, 0)


@pytest.mark.parametrize("opening", [open_picture, picture_size])
@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_small_file_that_claims_a_huge_picture_is_refused_at_once(
    tmp_path: Path, opening: Callable[..., object], side: int
) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, 8, b"\0"))
    with pytest.raises(DataError, match=r"a\.png: too many pixels .*; scale it down first"):
        opening(tmp_path / "a.png")


def test_photographs_of_100_megapixels_are_opened_without_a_word(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_500), 1).save(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == Size(10_000, 9_500)  # warnings are errors here


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tif"])
def test_pictures_of_one_pixel(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / name)
    image = open_picture(tmp_path / name)
    assert (image.mode, image.size, picture_size(tmp_path / name)) == ("RGB", (1, 1), Size(1, 1))
    assert near(image.getpixel((0, 0)), RED)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_of_an_animation_in_every_format(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    image = open_picture(tmp_path / name)
    assert near(image.getpixel((4, 4)), RED)
    assert picture_size(tmp_path / name) == Size(*image.size) == Size(8, 8)


def _stored() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    files = []
    for mode, kind, options in (
        ("RGB", "PNG", {"exif": exif}),
        ("RGB", "JPEG", {"exif": exif}),
        ("RGB", "WEBP", {"exif": exif}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("CMYK", "JPEG", {}),
    ):
        file = io.BytesIO()
        halves(mode).save(file, kind, **options)
        files.append(file.getvalue())
    return files


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on some of the damage
@pytest.mark.parametrize("number", range(7))
def test_damage_anywhere_gives_a_picture_or_one_clear_line(number: int) -> None:
    data, source = _stored()[number], random.Random(number)
    refusals = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 8))):
            place = source.randrange(source.choice((64, 256, len(data)))) % len(damaged)
            damaged[place : place + source.randrange(3)] = bytes(
                source.randrange(256) for _ in range(source.randrange(1, 3))
            )
        for opening in (open_picture, picture_size):
            try:
                opening(io.BytesIO(bytes(damaged)), "data.jsonl:7")
            except DataError as error:
                refusals.append(str(error))
    assert refusals
    assert all(text.startswith("data.jsonl:7: ") and "\n" not in text for text in refusals)


def test_broken_exif_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: Image.Image) -> None:
        raise struct.error("required argument is not an integer")  # what Pillow does with some broken EXIF of WebP

    halves().save(tmp_path / "a.webp")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(DataError, match=r"a\.webp: damaged or truncated picture \(required argument"):
        open_picture(tmp_path / "a.webp")
