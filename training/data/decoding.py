"""Decode photos: JPEG, PNG, WebP, HEIC and GIF files to upright 8-bit RGB images in sRGB."""

import hashlib
import threading
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms

from training.data.photo import MIN_SIDE, PhotoError, Upright, unreadable
from training.data.photo_files import resolve

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF")
MAX_PIXELS, MAX_SIDE = 150_000_000, 32_767
"""Phones take photos of 12 to 108 megapixels, some of 200, and panoramas of 20,000 pixels. Pillow stores at most 4
bytes a pixel, in colour with or without transparency and in CMYK (16-bit grey takes 2, and 16-bit colour is decoded to
8 bits): at most 600 MB. It would warn above 89 megapixels and raise above 179."""
MAX_WEBP_PIXELS = 70_000_000
"""Decoding WebP takes 15 bytes a pixel, other formats at most 8: up to 1.1 GB."""
HALVED_ABOVE = 50_000_000
"""Photos of more pixels are halved in width and height while they are decoded, unless their short side is under
``2 * MIN_HALVED``: a crop then still has the pixels of the largest training resolution."""
MIN_HALVED = 2048
BAND_PIXELS = 4_000_000
"""Pixels whose colours are converted at once."""
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a photo of each EXIF orientation upright (EXIF 2.3, table 6)."""
SIDEWAYS = 5
"""The first orientation that exchanges width and height."""

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # damaged EXIF: only the orientation is read
_opening = threading.Lock()
"""Held while Pillow's warning of large photos is off: catch_warnings changes the filters of the whole process."""


def load_photo(path: Path) -> Image.Image:
    """Return a photo as an upright RGB image in sRGB, transparency on white. Of an animation, the first frame.

    A photo of more than ``HALVED_ABOVE`` pixels has half its width and height. Raises PhotoError if the file is
    missing, unreadable, damaged, not a photo, too small or too large.
    """
    return decode(resolve(path)).image


def decode(path: Path, min_side: int = MIN_SIDE) -> Upright:
    """Return the photo at a resolved path, as ``load_photo`` does. Masks may have a shorter ``min_side``."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            image, share, size = _decode(path, file, min_side)
            return Upright(image, (1 / share, 1 / share), size, sha256)
    except OSError as error:  # from reading the file: _decode raises PhotoError
        raise unreadable(path, error) from error


def alpha_channel(path: Path) -> Image.Image | None:
    """Return the alpha channel of a photo that ``decode`` accepts, upright, or None if the photo is opaque."""
    with path.open("rb") as file:
        photo = _open(path, file)
        if not photo.has_transparency_data:
            return None
        alpha = photo.convert("RGBA").getchannel("A")
        if (orientation := _orientation(photo)) in ORIENTATIONS:
            alpha = alpha.transpose(ORIENTATIONS[orientation])
        return None if alpha.getextrema() == (255, 255) else alpha


def _decode(path: Path, file: BinaryIO, min_side: int) -> tuple[Image.Image, int, tuple[int, int]]:
    """Return the upright photo, the factor by which it is reduced, and its size in the file."""
    photo = _open(path, file)
    size = photo.size
    _check_size(path, photo, min_side)
    halve = size[0] * size[1] > HALVED_ABOVE and min(size) >= 2 * MIN_HALVED
    try:
        if halve:
            photo.draft(None, (size[0] // 2, size[1] // 2))  # JPEGs are decoded at half their size
        photo.load()
        orientation = _orientation(photo)
        image = _to_srgb(photo, halve and photo.size == size)
    except Exception as error:  # Pillow's decoders raise any exception on damaged files
        reason = str(error).strip()
        raise PhotoError(f"{path}: is damaged or truncated ({reason}). Copy it again from its source.") from error
    if orientation in ORIENTATIONS:
        image, size = image.transpose(ORIENTATIONS[orientation]), size if orientation < SIDEWAYS else (size[1], size[0])
    return image, 1 + halve, size


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """Open an image and read its header only."""
    _register_heic()
    file.seek(0)
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS applies instead
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, MAX_PIXELS) from error
    except Exception as error:
        raise PhotoError(f"{path}: is not a photo, or is damaged. Use a JPEG, PNG, WebP, HEIC or GIF photo.") from error


@cache
def _register_heic() -> None:
    import pillow_heif  # loads libheif and its codecs

    pillow_heif.register_heif_opener()


def _check_size(path: Path, photo: Image.Image, min_side: int) -> None:
    size = photo.size
    limit = MAX_WEBP_PIXELS if photo.format == "WEBP" else MAX_PIXELS
    if size[0] * size[1] > limit:
        raise _too_large(path, limit)
    if max(size) > MAX_SIDE:
        raise PhotoError(f"{path}: has a side of {max(size)} pixels; the limit is {MAX_SIDE}. Cut it into parts.")
    if min(size) < min_side:
        raise PhotoError(
            f"{path}: is only {size[0]}×{size[1]} pixels; the short side must have {min_side}. Use a larger photo."
        )


def _too_large(path: Path, limit: int) -> PhotoError:
    return PhotoError(f"{path}: has more than {limit // 10**6} megapixels. Save a smaller copy and use that.")


def _orientation(photo: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none or it can't be read.

    ImageOps.exif_transpose also writes the whole EXIF again, which fails if a single tag is malformed.
    """
    try:
        return int(photo.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_srgb(photo: Image.Image, halve: bool) -> Image.Image:
    """Return the photo as 8-bit RGB in sRGB, with ``halve`` at half its width and height.

    Its bands are converted one after another: whole copies in other modes would take several times the memory.
    """
    profile, share = photo.info.get("icc_profile"), 1 + halve
    if photo.mode == "RGB" and not (profile or photo.has_transparency_data or halve):
        return photo
    width, height = photo.size
    result = Image.new("RGB", (-(-width // share), -(-height // share)))
    rows = share * max(1, BAND_PIXELS // width // share)
    for top in range(0, height, rows):
        band = photo.crop((0, top, width, min(height, top + rows)))
        band = _band_to_srgb(_to_eight_bits(band), profile)
        result.paste(band.reduce(2) if halve else band, (0, top // share))
    return result


def _to_eight_bits(photo: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's ``convert`` would clip. Pillow scales 16-bit colour itself."""
    if photo.mode != "I;16":
        return photo
    return Image.fromarray(np.rint(np.asarray(photo) / 257).astype(np.uint8))


def _band_to_srgb(photo: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert any 8-bit mode to RGB: apply the colour profile, then composite transparency onto white."""
    alpha = photo.convert("RGBA").getchannel("A") if photo.has_transparency_data else None
    colour = _apply_profile(_drop_alpha(photo), profile) if profile else photo.convert("RGB")
    return colour if alpha is None else Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)


def _drop_alpha(photo: Image.Image) -> Image.Image:
    if photo.mode in ("1", "L", "LA"):
        return photo.convert("L")
    return photo if photo.mode in ("RGB", "CMYK") else photo.convert("RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _apply_profile(photo: Image.Image, profile: bytes) -> Image.Image:
    """Convert from the embedded profile to sRGB. A profile that is damaged or for another mode is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if photo.mode == "L" and profile[16:20] == b"RGB ":  # the header's colour space
            photo = photo.convert("RGB")
        return ImageCms.buildTransform(source, _srgb(), photo.mode, "RGB").apply(photo)
    except (OSError, ImageCms.PyCMSError):
        return photo.convert("RGB")
