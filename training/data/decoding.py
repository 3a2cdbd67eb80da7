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

from training.data.photo import MIN_SIDE, PhotoError, unreadable
from training.data.photo_files import resolve

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF")
MAX_PIXELS = 150_000_000
"""Phones take photos of 12 to 108 megapixels, some of 200. 150 megapixels occupy 450 MB of memory; one photo is decoded
at a time. Pillow would warn above 89 megapixels and raise above 179."""
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

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # damaged EXIF: only the orientation is read
_opening = threading.Lock()
"""Held while Pillow's warning of large photos is off: catch_warnings changes the filters of the whole process."""


def load_photo(path: Path) -> Image.Image:
    """Return a photo as an upright RGB image in sRGB, transparency on white. Of an animation, the first frame.

    Raises PhotoError if the file is missing, unreadable, damaged, not a photo, too small or too large.
    """
    return decode(resolve(path))[0]


def decode(path: Path) -> tuple[Image.Image, str]:
    """Return the photo at a resolved path, as ``load_photo`` does, and the SHA-256 of the file in hexadecimal."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return _decode(path, file), sha256
    except OSError as error:  # from reading the file: _decode raises PhotoError
        raise unreadable(path, error) from error


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    photo = _open(path, file)
    _check_size(path, photo.size)
    try:
        photo.load()
        photo = _upright(photo)
        return _to_srgb(_to_eight_bits(photo), photo.info.get("icc_profile"))
    except Exception as error:  # Pillow's decoders raise any exception on damaged files
        reason = str(error).strip()
        raise PhotoError(f"{path}: is damaged or truncated ({reason}). Copy it again from its source.") from error


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """Open an image and read its header only."""
    _register_heic()
    file.seek(0)
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS applies instead
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:
        raise PhotoError(f"{path}: is not a photo, or is damaged. Use a JPEG, PNG, WebP, HEIC or GIF photo.") from error


@cache
def _register_heic() -> None:
    import pillow_heif  # loads libheif and its codecs

    pillow_heif.register_heif_opener()


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path)
    if min(size) < MIN_SIDE:
        raise PhotoError(
            f"{path}: is only {size[0]}×{size[1]} pixels; the short side must have {MIN_SIDE}. Use a larger photo."
        )


def _too_large(path: Path) -> PhotoError:
    return PhotoError(f"{path}: has more than {MAX_PIXELS // 10**6} megapixels. Save a smaller copy and use that.")


def _upright(photo: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if it can be read.

    ImageOps.exif_transpose also writes the whole EXIF again, which fails if a single tag is malformed.
    """
    try:
        transposition = ORIENTATIONS.get(photo.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return photo
    return photo if transposition is None else photo.transpose(transposition)


def _to_eight_bits(photo: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's ``convert`` would clip. Pillow scales 16-bit colour itself."""
    if photo.mode != "I;16":
        return photo
    return Image.fromarray(np.rint(np.asarray(photo) / 257).astype(np.uint8))


def _to_srgb(photo: Image.Image, profile: bytes | None) -> Image.Image:
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
