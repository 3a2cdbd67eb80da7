"""Photos in: find them, read them upright in sRGB, cut them square, check them and take their captions along.

The photos themselves are only ever read.
"""

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms

from hra_diffusion.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright photo
CropMode = Literal["smart", "center", "letterbox"]
WarningKind = Literal["blurred", "small", "duplicate", "different", "ignored"]

MAX_PHOTOS = 50
MIN_SIDE = 64  # px: below this there is nothing to learn from
# Phones make 12 to 108 megapixels (a few 200, in a mode for it). 150 of them are 450 MB in memory, where training uses
# one at most. Pillow would warn at 89 and refuse at 179.
MAX_PIXELS = 150_000_000

# What a folder is searched for. A file named outright may have any name: its content decides.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".gif"})
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF")
CAPTION_SUFFIXES = (".txt", ".caption")
"""Of the files beside a photo that may hold its caption; the first one that is there counts."""
READABLE = "Use a JPEG, PNG, WebP, HEIC or GIF photo."

# Calibrated on the 50 photos of the ten dreambooth subjects. Sharp, at 64 to 512 px and with 0.4 of their contrast:
# 4.3 to 18. Under a Gaussian blur of 0.5% of the side: 0.7 to 1.7; of 0.3%: 1.9 to 3.4. Toy world pictures: from 3.3.
MIN_SHARPNESS = 2.75
SHARPNESS_SIDE = 256
# The closest two photos of one of these subjects are 0.028 apart (a cartoon on white; 0.055 without it), of the toy
# world's 0.024. The same photo saved at JPEG quality 30: up to 0.003 away; with 1% cut off each edge: up to 0.013.
MAX_TWIN_DISTANCE = 0.015
TWIN_SIDE = 16

# Distance of a photo's colours to those of its nearest neighbour. Within the ten dreambooth subjects: up to 0.24.
# Of a photo of another subject: 0.21 in the median, over 0.29 for a quarter. So it names few, and hardly one wrongly.
MAX_STRANGENESS = 0.28
PALETTE_SIDE = 48

INTEREST_SIDE = 64
CENTRE_WIDTH = 0.75  # of half the long side, as a standard deviation: a pull, not a rule


warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # damaged EXIF: only the orientation is read
_opening = threading.Lock()
"""Held while Pillow's warning of large photos is off: catch_warnings changes the filters of the whole process."""


class PhotoError(UserError):
    """A photo or caption that cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class PhotoWarning:
    """Something worth a look at one photo (a value, never raised); `message` starts with the file's name."""

    kind: WarningKind
    photo: Path
    message: str


@dataclass(frozen=True)
class Photo:
    """One photo ready for training.

    `image` is RGB in sRGB, resolution × resolution; `crop` is the part of the upright original it shows; `frame` is the
    part that it was cropped from: the photo's box, else the whole; `size` is the upright original's (width, height) in
    pixels; `sha256` is of the file's bytes, in hex.
    """

    path: Path
    image: Image.Image
    caption: str | None
    crop: Box
    frame: Box
    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """The photos of one subject in order of path, what to look at, and the files of their folders left aside."""

    photos: tuple[Photo, ...]
    warnings: tuple[PhotoWarning, ...]
    ignored: tuple[Path, ...]


def ingest(
    paths: Sequence[Path], resolution: int, crop: CropMode = "smart", boxes: Mapping[Path, Box] | None = None
) -> Dataset:
    """Read 1 to 50 photos and make each a square of `resolution` pixels.

    `paths` are files and folders, mixed; folders inside a folder are not searched. `crop` "smart" takes the square that
    holds the most detail, "center" the middle one, and "letterbox" the whole photo, padded with the mean colour of its
    edges. A box in `boxes` narrows its photo first (pixels of the upright photo). The caption of dog.jpg is dog.txt
    beside it, or else dog.caption: UTF-8, its lines joined.

    Raises PhotoError at the first photo, caption or box that cannot be used.
    """
    if crop not in ("smart", "center", "letterbox"):
        raise PhotoError(f"{crop!r} is no way to crop. Use smart, center or letterbox.")
    found, ignored = _survey(paths)
    chosen = {_resolve(path): box for path, box in (boxes or {}).items()}
    for path in chosen.keys() - found.keys():
        raise PhotoError(f"{path}: has a crop box but is not among the photos. Add the photo or remove the box.")
    taken = [_take(path, found[path], resolution, crop, chosen.get(path)) for path in sorted(found)]
    photos = tuple(photo for photo, _ in taken)
    noticed = [warning for _, warnings_ in taken for warning in warnings_]
    return Dataset(photos, (*noticed, *compare_photos(photos), *map(_left_aside, ignored)), tuple(ignored))


def compare_photos(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """What can be said only of photos together: the same one twice, or one that is nothing like the others."""
    return [*_twins(photos), *_strangers(photos)]


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """The photos among files and folders: resolved, each once, sorted.

    Raises PhotoError where a path is missing or unreadable, a folder holds no photos, or there are none or over 50.
    """
    return sorted(_survey(paths)[0])


def read_captions(paths: Sequence[Path]) -> dict[Path, str | None]:
    """The caption of each photo among files and folders, by the photo's resolved path; None where there is no file.

    Raises PhotoError as `find_photos` does, and for a caption that cannot be used.
    """
    found = _survey(paths)[0]
    return {path: _caption(found[path]) for path in sorted(found)}


def load_photo(path: Path) -> Image.Image:
    """One photo as RGB in sRGB, upright, transparency laid on white; of an animation, the first frame.

    Raises PhotoError where the file is missing, unreadable, no photo, damaged, too small or too large.
    """
    return _read(_resolve(path))[0]


# Finding


def _survey(paths: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Every photo's resolved path with the name it was given by (its caption lies beside that one), and the rest."""
    names: list[Path] = []
    ignored: set[Path] = set()
    for path in map(Path, paths):
        photos, rest = _list_folder(path) if _resolve(path).is_dir() else ([path], [])
        names += photos
        ignored.update(rest)
    # A shell's `photos/*` lists the captions too.
    captions = {path for name in names if name.suffix not in CAPTION_SUFFIXES for path in _caption_paths(name)}
    found: dict[Path, Path] = {}
    for name in names:
        if name not in captions:
            found.setdefault(_resolve(name), name)
    _check_count(len(found))
    ignored.update(path for name in found.values() for path in _caption_files(name)[1:])
    return found, sorted(ignored)


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not _is_hidden(entry))
        photos = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not photos:
        raise PhotoError(f"{folder}: no photos in this folder. Put JPEG, PNG, WebP or HEIC files directly into it.")
    known = {*photos, *(path for photo in photos for path in _caption_paths(photo))}
    return photos, [entry for entry in entries if entry not in known]


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name.lower() in ("thumbs.db", "desktop.ini", "notice", "license")


def _check_count(count: int) -> None:
    if count == 0:
        raise PhotoError(f"No photos were given. Name a folder, or 1 to {MAX_PHOTOS} photos.")
    if count > MAX_PHOTOS:
        raise PhotoError(f"{count} photos were given and {MAX_PHOTOS} are the most. Keep the best; 5 to 20 are plenty.")


def _resolve(path: Path) -> Path:
    try:
        resolved = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PhotoError(f"{path}: does not exist. Check the spelling.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: how Python before 3.13 reports links that go in a circle
        raise _unreadable(path, error) from error
    if not (resolved.is_file() or resolved.is_dir()):  # a pipe, for one, would be waited on for ever
        raise PhotoError(f"{path}: is neither a file nor a folder. Name a photo or a folder of photos.")
    return resolved


def _unreadable(path: Path, error: Exception) -> PhotoError:
    reason = getattr(error, "strerror", None) or error
    return PhotoError(f"{path}: cannot be read ({reason}). Check its permissions, or copy it elsewhere.")


def _left_aside(path: Path) -> PhotoWarning:
    if path.suffix == ".caption" and (used := path.with_suffix(".txt")).is_file():
        reason = f"{used.name} is the caption of this photo, and this one is left out. Keep one of them."
    elif path.suffix.lower() in CAPTION_SUFFIXES:
        reason = f"no photo here has its name, so it captions none. The caption of dog.jpg is dog{path.suffix.lower()}."
    elif path.is_dir():
        reason = "folders inside a folder are not searched. Name it too if its photos belong here."
    else:
        reason = "not a photo, left out."
    return PhotoWarning("ignored", path, f"{path.name}: {reason}")


# Reading


def _read(path: Path) -> tuple[Image.Image, str]:
    """The decoded photo and the SHA-256 of its file."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return _decode(path, file), sha256
    except OSError as error:  # the file's own: _decode raises PhotoError
        raise _unreadable(path, error) from error


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    photo = _open(path, file)
    _check_size(path, photo.size)
    try:
        photo.load()
        photo = _upright(photo)
        return _to_srgb(_to_eight_bits(photo), photo.info.get("icc_profile"))
    except Exception as error:  # a damaged file makes Pillow's decoders fail in any way there is
        reason = str(error).strip()
        raise PhotoError(f"{path}: is damaged or cut short ({reason}). Copy it again from its source.") from error


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """Reads the header, and no pixel yet."""
    _register_heic()
    file.seek(0)
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is MAX_PIXELS
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:  # as above
        raise PhotoError(f"{path}: is another kind of file, or damaged. {READABLE}") from error


@cache
def _register_heic() -> None:
    import pillow_heif  # here, for it loads libheif and its codecs

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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photo of each EXIF orientation upright (EXIF 2.3, table 6)."""


def _upright(photo: Image.Image) -> Image.Image:
    """The photo turned by its EXIF orientation.

    Reads that tag alone. ImageOps.exif_transpose writes the whole EXIF again, which fails at one malformed tag. EXIF
    that can't be read at all turns nothing.
    """
    try:
        turn = _TURNS.get(photo.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above
        return photo
    return photo if turn is None else photo.transpose(turn)


def _to_eight_bits(photo: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 (Pillow's own convert clips it); Pillow scales 16-bit colour as it decodes."""
    if photo.mode != "I;16":
        return photo
    return Image.fromarray(np.rint(np.asarray(photo) / 257).astype(np.uint8))


def _to_srgb(photo: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB from any 8-bit mode: the profile applied, then transparency laid on white."""
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
    """Through the embedded profile to sRGB; one that is broken or for another kind of photo is passed over."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if photo.mode == "L" and profile[16:20] == b"RGB ":  # the header's colour space
            photo = photo.convert("RGB")
        return ImageCms.buildTransform(source, _srgb(), photo.mode, "RGB").apply(photo)
    except (OSError, ImageCms.PyCMSError):
        return photo.convert("RGB")


# Cropping


def _take(path: Path, name: Path, resolution: int, crop: CropMode, box: Box | None) -> tuple[Photo, list[PhotoWarning]]:
    upright, sha256 = _read(path)
    frame = (0, 0, *upright.size) if box is None else _checked(path, box, upright.size)
    window = frame if crop == "letterbox" else _square(upright, frame, crop)
    photo = Photo(path, _fit(upright, window, resolution), _caption(name), window, frame, upright.size, sha256)
    return photo, _quality(photo, upright)


def _checked(path: Path, box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise PhotoError(
            f"{path}: crop box {box} does not lie in the upright photo of {size[0]}×{size[1]} pixels. "
            "Give left, top, right, bottom."
        )
    if min(right - left, bottom - top) < MIN_SIDE:
        raise PhotoError(f"{path}: crop box {box} is under {MIN_SIDE} pixels on a side. Draw a larger one.")
    return box


def _square(photo: Image.Image, frame: Box, crop: CropMode) -> Box:
    """The square over the frame's full short side: its middle, or where the most detail is."""
    left, top, right, bottom = frame
    side = min(right - left, bottom - top)
    slack = max(right - left, bottom - top) - side
    shift = _interest(photo, frame, slack) if crop == "smart" else slack // 2
    if right - left > bottom - top:
        left += shift
    else:
        top += shift
    return left, top, left + side, top + side


def _interest(photo: Image.Image, frame: Box, slack: int) -> int:
    """How far along the long side, in 0..slack, the square with the most gradient energy begins.

    Energy is the gradient's length over the three colours, summed across the short side. A wide Gaussian around the
    middle weighs it, and a small constant joins it first, so that a photo without detail is cut in the middle.
    """
    pixels = _pixels(photo, frame, INTEREST_SIDE)
    if pixels.shape[0] > pixels.shape[1]:
        pixels = pixels.swapaxes(0, 1)
    along, across = np.gradient(pixels, axis=(1, 0))
    energy = np.sqrt((along**2 + across**2).sum(axis=2)).sum(axis=0)
    place = np.linspace(-1, 1, len(energy)) / CENTRE_WIDTH
    weighted = (energy + 0.1 * energy.mean() + 1e-3) * np.exp(-(place**2) / 2)
    scores = np.convolve(weighted, np.ones(INTEREST_SIDE), mode="valid")
    return int((scores.argmax() + 0.5) / len(scores) * slack)


def _pixels(photo: Image.Image, window: Box, short_side: int) -> np.ndarray:
    """The window scaled to a short side, as floats in 0..255 of (height, width, 3)."""
    size = (window[2] - window[0], window[3] - window[1])
    scale = short_side / min(size)
    width, height = (round(side * scale) for side in size)
    # A gap of 3 averages blocks first: quicker on large photos, and as good here.
    scaled = photo.resize((width, height), Image.Resampling.LANCZOS, box=window, reducing_gap=3.0)
    return np.asarray(scaled, dtype=np.float32)


def _fit(photo: Image.Image, window: Box, resolution: int) -> Image.Image:
    """The window as a square; one that is not square is centred on the mean colour of its edges."""
    size = (window[2] - window[0], window[3] - window[1])
    width, height = (max(1, round(side * resolution / max(size))) for side in size)
    image = photo.resize((width, height), Image.Resampling.LANCZOS, box=window)
    if width == height:
        return image
    square = Image.new("RGB", (resolution, resolution), _edge_colour(image))
    square.paste(image, ((resolution - width) // 2, (resolution - height) // 2))
    return square


def _edge_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(value) for value in edges.mean(axis=0).tolist())
    return red, green, blue


def _caption_paths(name: Path) -> list[Path]:
    return [name.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]


def _caption_files(name: Path) -> list[Path]:
    return [path for path in _caption_paths(name) if path.is_file()]


def _caption(name: Path) -> str | None:
    if not (files := _caption_files(name)):
        return None
    path = files[0]
    try:
        caption = " ".join(path.read_text("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise PhotoError(f"{path}: the caption is not UTF-8 text. Save it again as UTF-8.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not caption:
        raise PhotoError(f"{path}: the caption is empty. Write one, or delete the file.")
    return caption


# Checking


def _quality(photo: Photo, upright: Image.Image) -> list[PhotoWarning]:
    found = []
    left, top, right, bottom = photo.crop
    side, resolution = max(right - left, bottom - top), photo.image.width
    if side < resolution:
        message = f"{side} pixels enlarged to {resolution} look soft. Use a larger photo, or train at {side} or less."
        found.append(PhotoWarning("small", photo.path, f"{photo.path.name}: {message}"))
    if _sharpness(upright, photo.crop) < MIN_SHARPNESS:
        message = "blurred, or almost without detail, and blur is learned like the rest. Use a sharper photo."
        found.append(PhotoWarning("blurred", photo.path, f"{photo.path.name}: {message}"))
    return found


def _sharpness(photo: Image.Image, window: Box) -> float:
    """Variance of the Laplacian over the same after a 3×3 softening, at 256 pixels or the photo's own fewer.

    The variance alone goes with the contrast and the amount of texture. What softening takes from it does not: fine
    detail loses most of its variance, while a blurred photo has little more to lose (after Crété et al., "The blur
    effect", 2007). The 1 in the denominator keeps rounding noise from passing for detail.
    """
    short = min(window[2] - window[0], window[3] - window[1])
    grey = _pixels(photo, window, min(short, SHARPNESS_SIDE)) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return float(_laplacian(grey).var() / (_laplacian(_soften(grey)).var() + 1))


def _laplacian(grey: np.ndarray) -> np.ndarray:
    return 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]


def _soften(grey: np.ndarray) -> np.ndarray:
    rows = (grey[:-2] + 2 * grey[1:-1] + grey[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _twins(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """One warning for each photo that an earlier one already shows."""
    prints = [_fingerprint(photo.image) for photo in photos]
    found = []
    for late, photo in enumerate(photos):
        for early, other in enumerate(photos[:late]):
            if photo.sha256 == other.sha256 or 1 - prints[late] @ prints[early] < MAX_TWIN_DISTANCE:
                found.append(_twin(photo, other))
                break
    return found


def _twin(photo: Photo, other: Photo) -> PhotoWarning:
    alike = "the same file as" if photo.sha256 == other.sha256 else "looks the same as"
    which = other.path if other.path.name == photo.path.name else other.path.name
    message = f"{photo.path.name}: {alike} {which}, which then counts twice. Keep one of them."
    return PhotoWarning("duplicate", photo.path, message)


def _fingerprint(image: Image.Image) -> np.ndarray:
    """A 16×16 thumbnail without its mean, of length 1: products are correlations, blind to brightness and contrast."""
    pixels = np.asarray(image.resize((TWIN_SIDE, TWIN_SIDE), Image.Resampling.LANCZOS), dtype=np.float32).ravel()
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)


def _strangers(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """One warning for each photo whose colours are far from those of every other; two alone can't tell which it is."""
    if len(photos) < 3:
        return []
    palettes = np.stack([_palette(photo.image) for photo in photos])
    distances = 1 - palettes @ palettes.T + 2 * np.eye(len(photos))
    text = "its colours are nothing like the other photos'. Is it the same subject? If not, remove it."
    return [
        PhotoWarning("different", photo.path, f"{photo.path.name}: {text}")
        for photo, nearest in zip(photos, distances.min(axis=1), strict=True)
        if nearest > MAX_STRANGENESS
    ]


def _palette(image: Image.Image) -> np.ndarray:
    """Square roots of a histogram of 12 hues and 5 greys, the middle of the picture counting most: products are
    Bhattacharyya coefficients. A pixel is a hue as far as it is saturated, a grey as far as it is not."""
    small = image.resize((PALETTE_SIDE, PALETTE_SIDE), Image.Resampling.LANCZOS).convert("HSV")
    hue, saturation, value = np.asarray(small, dtype=np.float64).reshape(-1, 3).T / 255
    across = np.linspace(-1, 1, PALETTE_SIDE)
    middle = np.exp(-(across[:, None] ** 2 + across**2) / (2 * 0.45**2)).ravel()
    hues = np.histogram((hue * 12) % 12, 12, (0, 12), weights=middle * saturation)[0]
    hues = (hues + np.roll(hues, 1) / 2 + np.roll(hues, -1) / 2) / 2  # neighbours in the circle are alike
    greys = np.histogram(value, 5, (0, 1), weights=middle * (1 - saturation))[0]
    both = np.concatenate([hues, greys])
    return np.sqrt(both / both.sum())
