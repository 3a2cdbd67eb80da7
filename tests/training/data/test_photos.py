import hashlib
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFilter, ImageOps

from training.data.photos import Dataset, PhotoError, find_photos, ingest, load_photo, read_captions

pillow_heif.register_heif_opener()  # for saving them here

REPO = Path(__file__).resolve().parents[3]
DREAMBOOTH = REPO.parent / "shared" / "data" / "dreambooth"
SUBJECTS = [
    "backpack",
    "bear_plushie",
    "cat",
    "clock",
    "dog",
    "dog6",
    "duck_toy",
    "rc_car",
    "red_cartoon",
    "teapot",
]


def scene(seed: int = 0, width: int = 160, height: int = 160) -> Image.Image:
    """A sharp picture, different for every seed: blocks of 8 pixels in random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def plain(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (80, 80)) -> Image.Image:
    return Image.new(mode, size, colour)


def middle(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[image.height // 2, image.width // 2].tolist())


def kinds(album: Dataset) -> list[str]:
    return [warning.kind for warning in album.warnings]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save_image(image: Image.Image, name: str, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
        return path

    return save_image


def subject(name: str) -> Path:
    folder = DREAMBOOTH / name
    if not folder.is_dir():
        pytest.skip(f"the dreambooth photos are not at {folder}")
    return folder


# Finding


def test_files_and_folders_mix_and_each_photo_comes_once_sorted_and_resolved(tmp_path, save):
    b, c, a = save(scene(), "in/b.jpg"), save(scene(1), "in/c.PNG"), save(scene(2), "a.webp")
    link = tmp_path / "link.jpg"
    link.symlink_to(b)
    assert find_photos([tmp_path / "in", tmp_path / "in" / ".." / "a.webp", link, c]) == sorted([a, b, c])


def test_hidden_files_are_passed_over_and_the_rest_is_named(tmp_path, save):
    save(scene(), "dog.jpg")
    for name in (".DS_Store", "._dog.jpg", "Thumbs.db", "dog.txt", "orphan.txt", "notes.md"):
        (tmp_path / name).write_text("words")
    (tmp_path / "more").mkdir()
    album = ingest([tmp_path], 64)
    assert [path.name for path in album.ignored] == ["more", "notes.md", "orphan.txt"]
    assert [(warning.kind, warning.photo) for warning in album.warnings] == [("ignored", p) for p in album.ignored]
    folder, other, orphan = (warning.message for warning in album.warnings)
    assert folder.startswith("more: folders inside a folder are not searched")
    assert other == "notes.md: not a photo, left out."
    assert "The caption of dog.jpg is dog.txt" in orphan


def test_a_caption_listed_beside_its_photo_is_no_photo(tmp_path, save):
    photo = save(scene(), "dog.jpg")
    (tmp_path / "dog.txt").write_text("a dog")
    assert find_photos([tmp_path / "dog.txt", photo]) == [photo]


def test_an_empty_list_is_refused():
    with pytest.raises(PhotoError, match=r"No photos were given. Name a folder"):
        ingest([], 64)


def test_a_folder_without_photos_is_refused(tmp_path, save):
    save(scene(), "photos/dog.jpg")
    with pytest.raises(PhotoError, match=r"no photos in this folder\. Put JPEG, PNG, WebP or HEIC files directly"):
        find_photos([tmp_path])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(PhotoError, match=r"nowhere\.jpg: does not exist"):
        find_photos([tmp_path / "nowhere.jpg"])


def test_fifty_photos_are_taken_and_one_more_is_not(tmp_path):
    (tmp_path / "00.jpg").write_bytes(b"")
    for number in range(1, 50):
        (tmp_path / f"{number:02}.jpg").hardlink_to(tmp_path / "00.jpg")
    assert len(find_photos([tmp_path])) == 50
    (tmp_path / "50.jpg").write_bytes(b"")
    with pytest.raises(PhotoError, match="51 photos were given and 50 are the most"):
        find_photos([tmp_path])


def test_links_in_a_circle_are_unreadable(tmp_path):
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    with pytest.raises(PhotoError, match=r"loop\.jpg: cannot be read"):
        find_photos([loop])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions_are_reported(tmp_path, save):
    photo = save(scene(), "in/dog.jpg")
    photo.chmod(0)
    with pytest.raises(PhotoError, match=r"dog\.jpg: cannot be read \(Permission denied\)"):
        load_photo(photo)
    photo.parent.chmod(0)
    try:
        with pytest.raises(PhotoError, match=r"in: cannot be read \(Permission denied\)"):
            find_photos([photo.parent])
    finally:
        photo.parent.chmod(0o700)


def test_a_pipe_is_refused_and_not_waited_on(tmp_path, save):
    save(scene(), "dog.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="neither a file nor a folder"):
        load_photo(tmp_path / "pipe.jpg")
    assert [path.name for path in find_photos([tmp_path])] == ["dog.jpg"]


# Reading


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.heic", "a.gif"])
def test_every_format_comes_out_as_rgb(save, name):
    photo = load_photo(save(plain((200, 40, 40), size=(96, 64)), name))
    assert photo.size == (96, 64)
    assert np.abs(np.array(middle(photo)) - (200, 40, 40)).max() <= 4


def test_the_content_decides_what_a_file_is(save):
    assert middle(load_photo(save(plain((0, 0, 255)), "really_a_png.jpg", format="PNG"))) == (0, 0, 255)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp", "turned.heic"])
def test_exif_orientation_turns_the_photo_upright(save, name):
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
def test_one_malformed_exif_tag_does_not_keep_a_photo_out(save, name, tag, kind, count, value):
    stored = plain((255, 255, 255), size=(160, 80))
    stored.paste((255, 0, 0), (0, 0, 80, 80))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0131], exif[0x8769] = 6, 72.0, "ab", {0x9000: b"0230"}
    photo = load_photo(save(stored, name, exif=malformed(exif.tobytes(), tag, kind, count, value)))
    assert photo.size == (80, 160) and photo.getpixel((40, 40))[1] < 30 and photo.getpixel((40, 120))[1] > 225


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"rubbish" * 9])
def test_exif_that_cannot_be_read_at_all_says_nothing_of_how_a_photo_lies(save, exif):
    assert load_photo(save(plain((9, 9, 9), size=(160, 80)), "a.jpg", exif=exif)).size == (160, 80)


@pytest.mark.parametrize("orientation", range(10))
def test_photos_lie_as_pillow_turns_them(save, orientation):
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


def test_a_broken_profile_is_passed_over(save):
    assert middle(load_photo(save(plain((10, 20, 30)), "a.png", icc_profile=b"not a profile" * 20))) == (10, 20, 30)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 0, 0, 51)), ("LA", (0, 51))])
def test_transparency_is_laid_on_white(save, mode, colour):
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
def test_of_an_animation_the_first_frame(save, name):
    later = [plain((0, 255, 0)), plain((0, 0, 255))]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(plain((255, 0, 0)), name, save_all=True, append_images=later, duration=100, **options)
    assert middle(load_photo(path)) == (255, 0, 0)


# Files that cannot be used


def png(width: int, height: int, data: bytes, depth: int = 8) -> bytes:
    """A PNG in RGB, put together by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("content", [b"this is a letter\n", b"", bytes(4096)])
def test_a_file_that_is_no_photo_is_refused(tmp_path, content):
    (tmp_path / "letter.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=r"letter\.jpg: is another kind of file, or damaged\. Use a JPEG, PNG"):
        ingest([tmp_path], 64)


def test_a_listed_file_that_is_no_photo_is_refused(tmp_path, save):
    save(scene(), "dog.jpg")
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(PhotoError, match=r"notes\.md: is another kind of file"):
        ingest([tmp_path, tmp_path / "notes.md"], 64)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.heic"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_photo_is_refused(save, name, share):
    path = save(scene(), name, icc_profile=display_p3())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(PhotoError, match=r"cut\.\w+: is damaged or cut short .*\. Copy it again"):
        load_photo(path)


# 30,000² is beyond Pillow's own limit, 13,000 × 12,000 only beyond ours.
@pytest.mark.parametrize("size", [(30_000, 30_000), (13_000, 12_000)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size, b"never read"))
    with pytest.raises(PhotoError, match=r"bomb\.png: has more than 150 megapixels\. Save a smaller copy"):
        ingest([tmp_path], 64)


def test_a_phone_photo_of_108_megapixels_passes_the_header_without_a_word(tmp_path, recwarn):
    (tmp_path / "phone.png").write_bytes(png(12_000, 9_000, b"not pixels"))
    with pytest.raises(PhotoError, match="damaged or cut short"):
        load_photo(tmp_path / "phone.png")
    assert not recwarn.list


def test_a_tiny_photo_is_refused(save):
    with pytest.raises(PhotoError, match=r"tiny\.png: is only 16×16 pixels; the short side must have 64"):
        ingest([save(scene(0, 16, 16), "tiny.png")], 64)


# Captions


def test_captions_lie_beside_their_photos(tmp_path, save):
    save(scene(), "a.jpg"), save(scene(1), "b.jpg")
    (tmp_path / "a.txt").write_text("  a façade,\n at night\n", encoding="utf-8-sig")
    assert [photo.caption for photo in ingest([tmp_path], 64).photos] == ["a façade, at night", None]


def test_a_caption_may_be_in_a_caption_file(tmp_path, save):
    """kohya's suffix; .txt counts where both are there."""
    for name in ("a", "b", "c"):
        save(scene(), f"{name}.jpg")
    (tmp_path / "a.caption").write_text("a dog\nsitting")
    (tmp_path / "b.caption").write_text("unused")
    (tmp_path / "b.txt").write_text("a dog")
    (tmp_path / "x.caption").write_text("of no photo")
    for paths in ([tmp_path], sorted(tmp_path.glob("[abc].*"))):
        album = ingest(paths, 64)
        assert [photo.caption for photo in album.photos] == ["a dog sitting", "a dog", None]
        said = {warning.photo.name: warning.message for warning in album.warnings if warning.kind == "ignored"}
        assert said["b.caption"].startswith("b.caption: b.txt is the caption of this photo") and "a.caption" not in said
    assert read_captions([tmp_path]) == {photo.path: photo.caption for photo in album.photos}
    said = {warning.photo.name: warning.message for warning in ingest([tmp_path], 64).warnings}
    assert "no photo here has its name" in said["x.caption"]


def test_a_links_caption_lies_beside_the_link(tmp_path, save):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dog.jpg").symlink_to(save(scene(), "store/8c1f", format="PNG"))
    (tmp_path / "set" / "dog.txt").write_text("a dog")
    (photo,) = ingest([tmp_path / "set"], 64).photos
    assert (photo.path, photo.caption) == (tmp_path / "store" / "8c1f", "a dog")


@pytest.mark.parametrize(
    ("content", "reason"), [(b" \n", "the caption is empty"), ("Hündin".encode("utf-16"), "the caption is not UTF-8")]
)
def test_an_unusable_caption_is_refused(tmp_path, save, content, reason):
    save(scene(), "dog.jpg")
    (tmp_path / "dog.txt").write_bytes(content)
    with pytest.raises(PhotoError, match=rf"dog\.txt: {reason}"):
        ingest([tmp_path], 64)


# Cropping


def detail_at(place: str) -> Image.Image:
    """Grey with a busy patch at one end ("left", "right", "top", "bottom")."""
    size = (320, 128) if place in ("left", "right") else (128, 320)
    image = plain((128, 128, 128), size=size)
    corner = (16, 16) if place in ("left", "top") else (size[0] - 112, size[1] - 112)
    image.paste(scene(3, 96, 96), corner)
    return image


@pytest.mark.parametrize("place", ["left", "right", "top", "bottom"])
def test_the_smart_crop_holds_the_detail(save, place):
    image = detail_at(place)
    (photo,) = ingest([save(image, "a.png")], 128).photos
    left, top, right, bottom = photo.crop
    assert (right - left, bottom - top) == (128, 128)
    start = left + top
    assert start <= 16 if place in ("left", "top") else start >= 320 - 128 - 16
    assert np.array_equal(photo.image, image.crop(photo.crop))  # at its own size nothing is resampled


def test_the_smart_crop_of_a_plain_photo_is_the_middle(save):
    (photo,) = ingest([save(plain((9, 9, 9), size=(300, 100)), "a.png")], 64).photos
    assert photo.crop[0] == pytest.approx(100, abs=2)


def test_the_center_crop_is_the_middle(save):
    (photo,) = ingest([save(detail_at("left"), "a.png")], 64, "center").photos
    assert photo.crop == (96, 0, 224, 128)
    assert photo.image.size == (64, 64)


def test_the_letterbox_keeps_the_whole_photo_on_the_colour_of_its_edges(save):
    image = plain((200, 100, 50), size=(200, 100))
    image.paste((0, 0, 0), (20, 20, 180, 80))
    (photo,) = ingest([save(image, "a.png")], 100, "letterbox").photos
    assert photo.crop == (0, 0, 200, 100)
    assert photo.image.size == (100, 100)
    assert photo.image.getpixel((50, 5)) == photo.image.getpixel((50, 95)) == (200, 100, 50)
    assert photo.image.getpixel((50, 50)) == (0, 0, 0)


def test_a_letterboxed_panorama_keeps_at_least_a_line(save):
    (photo,) = ingest([save(plain((1, 2, 3), size=(12_800, 64)), "a.png")], 64, "letterbox").photos
    assert photo.image.size == (64, 64)


def test_a_crop_box_narrows_the_photo_before_the_square(tmp_path, save):
    path = save(detail_at("right"), "a.png")
    (square,) = ingest([tmp_path], 64, boxes={path: (10, 20, 90, 100)}).photos
    assert square.crop == (10, 20, 90, 100)
    (wide,) = ingest([tmp_path], 64, "center", boxes={path: (0, 0, 200, 100)}).photos
    assert wide.crop == (50, 0, 150, 100)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 0, 400, 100), r"does not lie in the upright photo of 320×128"),
        ((-1, 0, 100, 100), r"does not lie in"),
        ((100, 0, 10, 100), r"does not lie in"),
        ((0, 0, 100, 63), r"is under 64 pixels"),
    ],
)
def test_a_crop_box_is_checked(save, box, reason):
    path = save(detail_at("left"), "a.png")
    with pytest.raises(PhotoError, match=rf"a\.png: crop box .* {reason}"):
        ingest([path], 64, boxes={path: box})


def test_a_crop_box_for_no_photo_is_refused(save):
    with pytest.raises(PhotoError, match=r"b\.png: has a crop box but is not among the photos"):
        ingest([save(scene(), "a.png")], 64, boxes={save(scene(1), "b.png"): (0, 0, 64, 64)})


def test_an_unknown_way_to_crop_is_refused(save):
    with pytest.raises(PhotoError, match=r"'middle' is no way to crop. Use smart, center or letterbox"):
        ingest([save(scene(), "a.png")], 64, "middle")  # pyright: ignore[reportArgumentType]


# Warnings


def test_photos_without_fault_give_no_warning(tmp_path, save):
    paths = [save(scene(seed, 200, 180), f"{seed}.png") for seed in range(4)]
    album = ingest([tmp_path], 128)
    assert album.warnings == album.ignored == ()
    assert [photo.path for photo in album.photos] == paths
    assert {photo.size for photo in album.photos} == {(200, 180)}


def test_a_small_photo_is_told(save):
    small = save(scene(0, 100, 90), "small.png")
    (warning,) = ingest([small], 128).warnings
    assert (warning.kind, warning.photo) == ("small", small)
    assert warning.message.startswith("small.png: 90 pixels enlarged to 128 look soft")
    assert ingest([small], 90).warnings == ()


def test_letterboxing_counts_the_long_side(save):
    assert ingest([save(scene(0, 200, 90), "a.png")], 200, "letterbox").warnings == ()


def test_a_blurred_photo_is_told(save):
    blurred = save(scene(0, 400, 400).filter(ImageFilter.GaussianBlur(3)), "soft.png")
    (warning,) = ingest([blurred], 256).warnings
    assert (warning.kind, warning.photo) == ("blurred", blurred)
    assert warning.message.startswith("soft.png: blurred")


def test_letterbox_edges_do_not_hide_a_blur(save):
    soft = scene(0, 400, 200).filter(ImageFilter.GaussianBlur(3))
    assert kinds(ingest([save(soft, "soft.png")], 256, "letterbox")) == ["blurred"]


def test_copies_are_told_once_each(tmp_path, save):
    first = save(scene(), "a/1.png")
    for name in ("a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(first.read_bytes())
    album = ingest([tmp_path / "a", tmp_path / "b"], 64)
    assert kinds(album) == ["duplicate", "duplicate"]
    assert album.warnings[0].message.startswith("2.png: the same file as 1.png,")
    assert album.warnings[1].message.startswith(f"1.png: the same file as {first},")


@pytest.mark.parametrize("change", ["saved again", "smaller", "brighter", "trimmed"])
def test_near_copies_are_told(save, change):
    original = Image.open(subject("dog") / "00.jpg").convert("RGB")
    options = {"quality": 30} if change == "saved again" else {}
    changed = {
        "saved again": original,
        "smaller": original.resize((300, 300)),
        "brighter": original.point(lambda value: value * 1.1),
        "trimmed": original.crop((5, 5, 507, 507)),
    }[change]
    paths = [save(original, "0.png"), save(changed, "1.jpg", **options)]
    (warning,) = (found for found in ingest(paths, 256).warnings if found.kind == "duplicate")
    assert warning.photo == paths[1]
    assert warning.message.startswith("1.jpg: looks the same as 0.png")


# The whole


def test_the_originals_stay_as_they_were(tmp_path, save):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(scene(0, 200, 100), "a.jpg", exif=exif), save(scene(1), "b.heic"), save(plain((0, 0, 0, 9), "RGBA"), "c.png")
    (tmp_path / "a.txt").write_text("a caption")

    def state() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}

    before = state()
    album = ingest([tmp_path], 64)
    assert state() == before
    assert album.photos[0].sha256 == hashlib.sha256(before["a.jpg"][0]).hexdigest()
    assert album.photos[0].size == (100, 200)


@pytest.mark.parametrize("name", SUBJECTS)
def test_real_subjects_come_in_without_a_false_alarm(name):
    album = ingest([subject(name)], 256)
    assert 4 <= len(album.photos) <= 6
    assert album.warnings == ()
    assert all(photo.image.size == (256, 256) and photo.image.mode == "RGB" for photo in album.photos)


@pytest.mark.parametrize("name", SUBJECTS)
def test_real_photos_blurred_are_all_told(name, save):
    originals = sorted(subject(name).glob("*.jpg"))
    paths = [save(Image.open(path).filter(ImageFilter.GaussianBlur(2.5)), path.name, quality=95) for path in originals]
    assert kinds(ingest(paths, 256)) == ["blurred"] * len(paths)


def test_heic_support_is_loaded_when_it_is_needed(save):
    script = (
        "import sys; from pathlib import Path; from training.data.photos import load_photo\n"
        "print([name for name in ('pillow_heif', 'torchvision', 'cv2') if name in sys.modules])\n"
        "print(load_photo(Path(sys.argv[1])).size)"
    )
    command = [sys.executable, "-c", script, str(save(scene(), "a.heic"))]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "(160, 160)"]
