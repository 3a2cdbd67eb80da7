"""Decoding photos, against Pillow and CSS Color 4; files that cannot be decoded."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, distance
from PIL import Image, ImageCms, ImageOps
from sample_photos import plain, scene

from training.data import decoding
from training.data.dataset import load_dataset
from training.data.decoding import load_photo
from training.data.photo import PhotoError


def middle(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[image.height // 2, image.width // 2].tolist())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.heic", "a.gif"])
def test_every_format_is_decoded_to_rgb(save, name):
    photo = load_photo(save(plain((200, 40, 40), size=(96, 64)), name))
    assert photo.size == (96, 64)
    assert np.abs(np.array(middle(photo)) - (200, 40, 40)).max() <= 4


def test_the_format_is_detected_from_the_content(save):
    assert middle(load_photo(save(plain((0, 0, 255)), "really_a_png.jpg", format="PNG"))) == (0, 0, 255)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp", "turned.heic"])
def test_the_exif_orientation_is_applied(save, name):
    stored = plain((255, 255, 255), size=(160, 80))
    stored.paste((255, 0, 0), (0, 0, 80, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise: the stored left is the top
    pixels = np.asarray(load_photo(save(stored, name, exif=exif.tobytes())))
    assert pixels.shape == (160, 80, 3)
    assert pixels[40, 40, 1] < 30
    assert pixels[120, 40, 1] > 225


def malformed(exif: bytes, tag: int, kind: int, count: int, value: bytes) -> bytes:
    """EXIF bytes whose entry for ``tag`` says another type, count and value (TIFF 6.0, section 2)."""
    order = "<" if exif[6:8] == b"II" else ">"
    at = exif.index(struct.pack(order + "H", tag), 14)
    return exif[: at + 2] + struct.pack(order + "HI", kind, count) + value + exif[at + 12 :]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [
        (0x011A, 3, 1, b"\xff\xff\0\0"),  # the resolution as a short
        (0x011A, 2, 4, b"abc\0"),  # as text
        (0x011A, 5, 0, b"\0\0\0\0"),  # nothing
        (0x011A, 5, 1, b"\xff\xff\xff\x7f"),  # beyond the end
        (0x011A, 99, 1, b"\0\0\0\0"),  # of no type
        (0x011A, 7, 4, b"\1\2\3\4"),
        (0x0131, 4, 1, b"\1\0\0\0"),  # the software as a number
        (0x8769, 2, 4, b"abc\0"),  # the pointer to more of it as text
        (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    ],
)
def test_a_malformed_exif_tag_is_ignored(save, name, tag, kind, count, value):
    stored = plain((255, 255, 255), size=(160, 80))
    stored.paste((255, 0, 0), (0, 0, 80, 80))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0131], exif[0x8769] = 6, 72.0, "ab", {0x9000: b"0230"}
    photo = load_photo(save(stored, name, exif=malformed(exif.tobytes(), tag, kind, count, value)))
    assert photo.size == (80, 160) and photo.getpixel((40, 40))[1] < 30 and photo.getpixel((40, 120))[1] > 225


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"rubbish" * 9])
def test_unreadable_exif_is_ignored(save, exif):
    assert load_photo(save(plain((9, 9, 9), size=(160, 80)), "a.jpg", exif=exif)).size == (160, 80)


@pytest.mark.parametrize("orientation", range(10))
def test_orientations_match_pillow(save, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(scene(3, 160, 88), "a.png", exif=exif.tobytes())
    with Image.open(path) as stored:
        assert load_photo(path).tobytes() == ImageOps.exif_transpose(stored).tobytes()


def display_p3() -> bytes:
    """Pillow's sRGB profile with Display P3's primaries: both share the tone curve and the white."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for tag, xyz in primaries.items():
        (offset,) = struct.unpack_from(">I", profile, profile.index(tag) + 4)
        struct.pack_into(">3i", profile, offset + 8, *(round(value * 65536) for value in xyz))
    return bytes(profile)


def p3_to_srgb(colour: tuple[int, int, int]) -> np.ndarray:
    """By CSS Color 4's matrices."""
    matrix = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]])
    encoded = np.array(colour) / 255
    linear = matrix @ np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", ["p3.png", "p3.jpg", "p3.heic", "p3_alpha.png"])
def test_the_embedded_profile_is_converted_to_srgb(save, name):
    colour = (100, 180, 90)
    image = plain(colour).convert("RGBA" if "alpha" in name else "RGB")
    photo = load_photo(save(image, name, icc_profile=display_p3()))
    expected = p3_to_srgb(colour)
    assert np.abs(expected - colour).max() > 20
    assert np.abs(middle(photo) - expected).max() <= (2 if name.endswith("png") else 5)


def test_grey_with_a_colour_profile_stays_grey(save):
    photo = load_photo(save(plain((120,), "L"), "grey.png", icc_profile=display_p3()))
    assert np.abs(np.array(middle(photo)) - 120).max() <= 1


def test_a_damaged_profile_is_ignored(save):
    assert middle(load_photo(save(plain((10, 20, 30)), "a.png", icc_profile=b"not a profile" * 20))) == (10, 20, 30)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 0, 0, 51)), ("LA", (0, 51))])
def test_transparency_is_composited_onto_white(save, mode, colour):
    photo = load_photo(save(plain(colour, mode), "a.png"))
    assert middle(photo) == ((244, 204, 204) if mode == "RGBA" else (204, 204, 204))


@pytest.mark.parametrize("name", ["palette.png", "palette.gif"])
def test_a_palette_with_a_transparent_colour(save, name):
    image = plain((0,), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 40, 80))
    pixels = np.asarray(load_photo(save(image, name, transparency=0)))
    assert pixels[40, 20].tolist() == [0, 0, 255]
    assert pixels[40, 60].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb(save):
    photo = load_photo(save(plain((255, 0, 0, 0), "CMYK"), "print.jpg"))
    red, green, blue = middle(photo)
    assert red < 20
    assert min(green, blue) > 220


def test_sixteen_bit_grey_is_scaled_and_not_clipped(save):
    ramp = np.tile(np.linspace(0, 65535, 128).astype(np.uint16), (128, 1))
    pixels = np.asarray(load_photo(save(Image.fromarray(ramp), "deep.png")))
    assert np.abs(pixels[:, :, 0] - ramp / 257).max() <= 0.5


def test_sixteen_bit_colour_is_scaled(tmp_path):
    rows = (b"\0" + struct.pack(">3H", 51400, 25700, 257) * 64) * 64
    (tmp_path / "deep.png").write_bytes(png(64, 64, zlib.compress(rows), depth=16))
    assert middle(load_photo(tmp_path / "deep.png")) == (200, 100, 1)


@pytest.mark.parametrize(("mode", "colour"), [("L", (77,)), ("1", (1,))])
def test_grey_and_bilevel(save, mode, colour):
    assert middle(load_photo(save(plain(colour, mode), "a.png"))) == ((77,) * 3 if mode == "L" else (255,) * 3)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_the_first_frame_of_an_animation_is_used(save, name):
    later = [plain((0, 255, 0)), plain((0, 0, 255))]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(plain((255, 0, 0)), name, save_all=True, append_images=later, duration=100, **options)
    assert middle(load_photo(path)) == (255, 0, 0)


def png(width: int, height: int, data: bytes, depth: int = 8) -> bytes:
    """Assemble a PNG in RGB from its chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("content", [b"this is a letter\n", b"", bytes(4096)])
def test_a_file_that_is_not_a_photo_is_rejected(tmp_path, content):
    (tmp_path / "letter.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=r"letter\.jpg: is not a photo, or is damaged\. Use a JPEG, PNG"):
        load_dataset([tmp_path], 64)


def test_a_given_file_that_is_not_a_photo_is_rejected(tmp_path, save):
    save(scene(), "dog.jpg")
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(PhotoError, match=r"notes\.md: is not a photo"):
        load_dataset([tmp_path, tmp_path / "notes.md"], 64)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.heic"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_photo_is_rejected(save, name, share):
    path = save(scene(), name, icc_profile=display_p3())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(PhotoError, match=r"cut\.\w+: is damaged or truncated .*\. Copy it again"):
        load_photo(path)


# 30,000² is beyond Pillow's own limit, 13,000 × 12,000 only beyond ours.
@pytest.mark.parametrize("size", [(30_000, 30_000), (13_000, 12_000)])
def test_a_decompression_bomb_is_rejected_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size, b"never read"))
    with pytest.raises(PhotoError, match=r"bomb\.png: has more than 150 megapixels\. Save a smaller copy"):
        load_dataset([tmp_path], 64)


def test_a_strip_is_rejected_by_its_header(tmp_path):
    (tmp_path / "strip.png").write_bytes(png(64, 2_300_000, b"never read"))
    with pytest.raises(PhotoError, match=r"strip\.png: has a side of 2300000 pixels; the limit is 32767"):
        load_dataset([tmp_path], 64)


def test_a_webp_photo_has_a_lower_limit(tmp_path):
    """Its decoder takes twice the memory of others."""
    header = (9_999).to_bytes(3, "little") + (7_999).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\0\0\0\0" + header
    (tmp_path / "a.webp").write_bytes(b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk)
    with pytest.raises(PhotoError, match=r"a\.webp: (has more than 70 megapixels|is not a photo)"):
        load_dataset([tmp_path], 64)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "turned.jpg", "odd.png", "clear.png", "icc.png"])
def test_a_huge_photo_is_halved_with_the_same_crop(save, monkeypatch, name):
    size = (601, 401) if name == "odd.png" else (600, 400)
    image, options = Image.fromarray(np.asarray(scene(1, *size))), {}
    if name == "clear.png":
        image.putalpha(scene(2, *size).convert("L"))
    if name == "turned.jpg":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    if name == "icc.png":
        options["icc_profile"] = display_p3()
    path = save(image, name, **options, **({"quality": 95} if name.endswith("jpg") else {}))
    (whole,) = load_dataset([path], 64).photos
    monkeypatch.setattr(decoding, "HALVED_ABOVE", 100_000)
    monkeypatch.setattr(decoding, "MIN_HALVED", 100)
    upright = decoding.decode(path)
    (halved,) = load_dataset([path], 64).photos
    assert upright.image.size == tuple(-(-side // 2) for side in upright.size) and halved.size == whole.size
    assert halved.crop == whole.crop and distance(halved.image, whole.image) < 2.5
    monkeypatch.setattr(decoding, "MIN_HALVED", 300)
    assert decoding.decode(path).image.size == whole.size, "a crop would have too few pixels"


def test_a_photo_of_108_megapixels_is_accepted_without_a_warning(tmp_path, recwarn):
    (tmp_path / "phone.png").write_bytes(png(12_000, 9_000, b"not pixels"))
    with pytest.raises(PhotoError, match="damaged or truncated"):
        load_photo(tmp_path / "phone.png")
    assert not recwarn.list


def test_a_tiny_photo_is_rejected(save):
    with pytest.raises(PhotoError, match=r"tiny\.png: is only 16×16 pixels; the short side must have 64"):
        load_dataset([save(scene(0, 16, 16), "tiny.png")], 64)


def test_heic_support_is_imported_on_demand(save):
    script = (
        "import sys; from pathlib import Path; from training.data.decoding import load_photo\n"
        "print([name for name in ('pillow_heif', 'torchvision', 'cv2') if name in sys.modules])\n"
        "print(load_photo(Path(sys.argv[1])).size)"
    )
    command = [sys.executable, "-c", script, str(save(scene(), "a.heic"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "(160, 160)"]
