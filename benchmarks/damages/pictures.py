"""Damaged PNG, JPEG, TIFF and BMP files, and whole ones of uncommon forms."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageOps, features

from damages.kinds import EMPTY, INDEXED, Sample, damage, saved
from damages.raw import chunk, ifd_loop, interlaced, png, tiff

BROKEN = r"rejected: damaged or cut short \(.+\)"
HEADER = "rejected: its header is damaged, or says that the picture has no pixels"
OTHER = "rejected: not a PNG, JPEG, TIFF or BMP picture, whatever its name says"
LARGE = r"rejected: (\d+ x \d+ pixels: )?its header announces more than \d+ megapixels; .+"
NOT_FINITE = "rejected: holds values that are not finite, .+"
ANY = (r"indexed.*", r"rejected: .+")
UNREADABLE = (BROKEN, HEADER, OTHER, EMPTY)


@damage("images", *UNREADABLE, end=".png")
def png_cut_short(some: Sample) -> bytes:
    """Anywhere before the end of its pixels."""
    return some.cut(some.file("PNG"), 0, 20)


@damage("images", *UNREADABLE, end=".jpg")
def jpeg_cut_short(some: Sample) -> bytes:
    """Anywhere, be it that only half of its end marker is missing."""
    return some.cut(some.file("JPEG", progressive=bool(some.number % 2)), 0, 1)


@damage("images", *UNREADABLE, end=".tif")
def tiff_cut_short(some: Sample) -> bytes:
    return some.cut(some.file("TIFF", compression=some.one_of(None, "tiff_lzw", "tiff_adobe_deflate")), 0, 20)


@damage("images", *UNREADABLE, end=".bmp")
def bmp_cut_short(some: Sample) -> bytes:
    return some.cut(some.file("BMP"), 0, 4)


@damage("images", INDEXED, *UNREADABLE, end=".png")
def png_with_flipped_bytes(some: Sample) -> bytes:
    """Indexed only where the pixels are what they were."""
    some.shown = some.picture
    return some.flip(some.file("PNG"))


@damage("images", INDEXED, BROKEN, HEADER, end=".jpg")
def jpeg_with_flipped_bytes(some: Sample) -> bytes:
    """In its compressed pixels, which have no checksum: no decoder sees all of it."""
    data = some.file("JPEG", quality=90, progressive=bool(some.number % 2))
    return some.flip(data, data.index(b"\xff\xda") + 14, len(data) - 2)


@damage("images", *ANY, end="")
def flipped_bytes_in_a_header(some: Sample) -> bytes:
    """Which may say anything of the picture after that, sizes and offsets too."""
    form, end = some.one_of(("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tif"), ("BMP", ".bmp"))
    some.path = some.path.with_suffix(end)
    data = some.flip(some.file(form), 2, 160 if form == "TIFF" else 60, most=3)
    return _with_checksum(data) if form == "PNG" else data


@damage("images", BROKEN, HEADER, end=".png")
def png_with_a_wrong_checksum(some: Sample) -> bytes:
    """Of its header or its pixels, which themselves are whole."""
    data = bytearray(some.file("PNG"))
    at = data.index(some.one_of(b"IHDR", b"IDAT"))
    (length,) = struct.unpack(">I", data[at - 4 : at])
    data[at + 4 + length] ^= 1 + some.number % 255
    return bytes(data)


@damage("images", BROKEN, end=".png")
def png_damaged_before_its_checksum(some: Sample) -> bytes:
    """The chunk is as it was written; only the checksum within the compressed data tells."""
    rows = zlib.compress(np.pad(some.picture, ((0, 0), (1, 0))).tobytes())
    return png(some.picture.shape[1], some.picture.shape[0], chunk(b"IDAT", some.flip(rows, 2)))


@damage("images", EMPTY, end=".png")
def no_bytes(some: Sample) -> bytes:
    some.path = some.path.with_suffix(some.one_of(".png", ".jpg", ".TIFF", ".bmp"))
    return b""


@damage("images", *UNREADABLE, end=".png")
def png_that_ends_in_zeros(some: Sample) -> bytes:
    data = some.file("PNG")
    return some.cut(data, 0, 20).ljust(len(data), b"\0")


@damage("images", *UNREADABLE, end=".jpg")
def jpeg_that_ends_in_zeros(some: Sample) -> bytes:
    data = some.file("JPEG", progressive=bool(some.number % 2))
    return some.cut(data, 0, 2).ljust(len(data), b"\0")


@damage("images", LARGE, end=".png")
def png_of_a_gigapixel(some: Sample) -> bytes:
    """In an eighth of a megabyte."""
    return png(32_000, 32_000, _gigapixel() + chunk(b"tEXt", b"Comment\0%d" % some.number), bits=1)


@damage("images", LARGE, end=".tif")
def announces_a_huge_size(some: Sample) -> bytes:
    """And holds a small picture."""
    side = int(some.draw.integers(20_000, 65_000))
    form, end = some.one_of(("TIFF", ".tif"), ("BMP", ".bmp"), ("JPEG", ".jpg"))
    some.path = some.path.with_suffix(end)
    if form == "TIFF":
        return tiff(some.picture, {256: side, 257: side, 278: side})
    data = bytearray(some.file(form))
    if form == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@damage("images", r"indexed 4990 x 4990( blank)?", end="")
def almost_too_large(some: Sample) -> bytes:
    """A few kilobytes that become as many pixels as are allowed, in the forms that take most memory."""
    end, data = some.one_of(*_large())
    some.path = some.path.with_suffix(end)
    return data


@damage("images", INDEXED, BROKEN, end=".png")
def png_with_metadata_that_swell(some: Sample) -> bytes:
    """200 MB of zeros in a text or a colour profile."""
    some.shown = some.picture
    name = some.one_of(b"zTXt", b"iCCP", b"iTXt")
    body = b"Comment\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + _zeros()
    data = some.file("PNG")
    at = 33 if some.number % 2 else len(data) - 12
    return data[:at] + chunk(name, body) + data[at:]


@damage("images", "indexed blank", BROKEN, HEADER, end=".tif")
def tiff_with_pixels_that_swell(some: Sample) -> bytes:
    """A strip of 200 MB of zeros in a small picture."""
    return tiff(some.picture, {259: 8}, _zeros())


@damage("images", *ANY, end=".tif")
def tiff_of_absurd_parts(some: Sample) -> bytes:
    """Tiles, strips, counts and offsets that no file has."""
    large = int(some.draw.integers(2**20, 2**31))
    tags = some.one_of(
        {322: large, 323: large, 324: 8, 325: 100},
        {278: large, 279: large},
        {273: large},
        {277: 65535},
        {258: 255},
        {317: 77, 259: 5},
    )
    return tiff(some.picture, tags)


@damage("images", INDEXED, end="")
def named_as_another_format(some: Sample) -> bytes:
    """Read by what it is."""
    some.shown = some.picture
    form, end = some.one_of(("PNG", ".jpg"), ("TIFF", ".png"), ("BMP", ".tif"), ("PNG", ".BMP"))
    some.path = some.path.with_suffix(end)
    return some.file(form)


@damage("images", OTHER, end="")
def no_picture_inside(some: Sample) -> bytes:
    some.path = some.path.with_suffix(some.one_of(".png", ".jpg", ".tif", ".bmp", ".jpeg"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", some.file("PNG"))
    text = f"patient,diagnosis\n{some.number},benign\n".encode()
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return some.one_of(text, page, archive.getvalue(), b"%PDF-1.7\n%%EOF", bytes(4096), some.noise(64) + b"\0")


@damage("images", OTHER, end=".png")
def format_that_is_not_read(some: Sample) -> bytes:
    """Animations among them."""
    second = Image.fromarray(255 - some.picture)
    form = some.one_of("GIF", *(["WEBP"] if features.check("webp") else []), "PPM", "ICO")
    return some.file(form, save_all=True, append_images=[second]) if form in ("GIF", "WEBP") else some.file(form)


@damage("images", INDEXED, end="")
def sixteen_bits(some: Sample) -> bytes:
    """Of which scanners fill twelve: neither black nor white."""
    some.shown = some.picture
    form, end = some.one_of(("PNG", ".png"), ("TIFF", ".tif"))
    some.path = some.path.with_suffix(end)
    return some.file(form, some.picture.astype(np.uint16) * some.one_of(16, 16, 257, 257, 1, 1))


@damage("images", INDEXED, end=".jpg")
def cmyk_jpeg(some: Sample) -> bytes:
    return saved(Image.fromarray(some.picture).convert("CMYK"), "JPEG", quality=95)


@damage("images", INDEXED, end="")
def several_pictures(some: Sample) -> bytes:
    """An animation or pages, of which the first is the picture."""
    some.shown = some.picture
    form, end = some.one_of(("PNG", ".png"), ("TIFF", ".tif"))
    some.path = some.path.with_suffix(end)
    return some.file(form, save_all=True, append_images=[Image.fromarray(255 - some.picture)] * 3)


@damage("images", INDEXED, "indexed turned", end="")
def turned_by_exif(some: Sample) -> bytes:
    form, end = some.one_of(("PNG", ".png"), ("TIFF", ".tif"), ("JPEG", ".jpg"))
    some.path = some.path.with_suffix(end)
    exif = Image.Exif()
    exif[0x0112] = 1 + some.number // 3 % 8
    data = some.file(form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    some.shown, some.picture = (None if form == "JPEG" else upright), upright
    return data


@damage("images", r"indexed( blank)?", end="")
def odd_sizes(some: Sample) -> bytes:
    """From one pixel to lines of one pixel and strips."""
    width, height = some.one_of((1, 1), (1, 999), (999, 1), (65_000, 1), (1, 65_000), (2, 20_000), (20_000, 3), (5, 7))
    image = Image.fromarray(some.picture).resize((width, height))
    some.picture = some.shown = np.array(image)
    form, end = some.one_of(*[("PNG", ".png"), ("BMP", ".bmp"), ("TIFF", ".tif")])
    some.path = some.path.with_suffix(end)
    return saved(image, form)


@damage("images", INDEXED, end=".png")
def uncommon_png(some: Sample) -> bytes:
    """Interlaced, of a palette, with transparency."""
    some.shown = some.picture
    image = Image.fromarray(some.picture)
    seen = Image.fromarray(255 - some.picture)
    if some.number % 4 == 0:
        return interlaced(some.picture)
    if some.number % 4 == 1:
        return saved(image.convert("P"), "PNG", transparency=bytes(range(256)))
    return saved(Image.merge(*some.one_of(*[("LA", [image, seen])] * 3, ("RGBA", [image] * 3 + [seen]))), "PNG")


@damage("images", NOT_FINITE, end=".tif")
def floats_that_are_not_finite(some: Sample) -> bytes:
    values = some.picture.astype(np.float32)
    values[tuple(some.draw.integers(values.shape))] = some.one_of(np.nan, np.inf, -np.inf)
    return some.file("TIFF", values)


@damage("images", INDEXED, end=".tif")
def tiff_whose_pages_form_a_loop(some: Sample) -> bytes:
    some.shown = some.picture
    return ifd_loop(some.picture)


@damage("images", HEADER, BROKEN, LARGE, end=".bmp")
def bmp_of_a_broken_header(some: Sample) -> bytes:
    data = bytearray(some.file("BMP"))
    at, form, value = some.one_of((14, "<I", 7), (18, "<i", 0), (28, "<H", 77), (30, "<I", 99), (10, "<I", 2**31))
    data[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


def _with_checksum(data: bytes) -> bytes:
    """A PNG whose header's checksum is right again."""
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]


@cache
def _gigapixel() -> bytes:
    """Compressed rows of 32,000 x 32,000 pixels of one bit."""
    return chunk(b"IDAT", zlib.compress(bytes(4001 * 32_000), 1))


@cache
def _zeros() -> bytes:
    return zlib.compress(bytes(200 * 2**20), 9)


@cache
def _large() -> list[tuple[str, bytes]]:
    """Ends of names and files of 4,990 x 4,990 pixels."""
    rows = (np.arange(4990) // 20 % 256).astype(np.uint8)
    grey = np.broadcast_to(rows[:, None], (4990, 4990))
    colour = Image.merge("RGB", [Image.fromarray(plane) for plane in (grey, grey // 2, 255 - grey)])
    return [
        (".png", saved(colour, "PNG", compress_level=1)),
        (".jpg", saved(colour, "JPEG", progressive=True, subsampling=0, quality=30)),
        (".jpg", saved(colour.convert("CMYK"), "JPEG", quality=30)),
        (".tif", saved(Image.fromarray(grey.astype(np.float32)), "TIFF", compression="tiff_adobe_deflate")),
        (".png", saved(Image.fromarray(grey.astype(np.uint16)), "PNG", compress_level=1)),
    ]
