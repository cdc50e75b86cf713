"""One image: bytes to RGB, RGB to the square that a network sees."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from cases import cases
from image_trees import encoded, jpeg, picture, png
from logs import PNG_MAGIC
from PIL import Image

from examples.imagenet.data import pixels
from examples.imagenet.data.pixels import for_evaluation, for_training

AUGMENTS = ["caffe", "center", "rrc"]
TALL = picture(0, 45, 37)

# Pillow writes only CMYK, whose Adobe marker says transform 0.
YCCK = bytearray(encoded(TALL, "JPEG", "CMYK"))
YCCK[YCCK.index(b"Adobe") + 11] = 2


def chunk(name, data):
    ends = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(name + data))
    return ends[0] + name + data + ends[1]


@cases(
    "raw, tolerance",
    jpeg=(encoded(TALL, "JPEG"), 0),
    progressive_jpeg=(encoded(TALL, "JPEG", progressive=True), 0),
    grey_jpeg=(encoded(TALL, "JPEG", "L"), 0),
    # The ink's product is rounded differently.
    cmyk_jpeg=(encoded(TALL, "JPEG", "CMYK"), 1),
    ycck_jpeg=(bytes(YCCK), 1),
    png=(encoded(TALL), 0),
    grey_png=(encoded(TALL, "PNG", "L"), 0),
    palette_png=(encoded(TALL, "PNG", "P"), 0),
    bmp=(encoded(TALL, "BMP"), 0),
    webp=(encoded(TALL, "WEBP", lossless=True), 0),
)
def test_decodes_what_pillow_decodes(raw, tolerance):
    image = pixels.decode(raw).pixels
    assert (image.shape, image.dtype) == (TALL.shape, np.uint8)
    oracle = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    assert np.abs(image.astype(int) - oracle).max() <= tolerance


# Of 16 bits the upper 8 are kept, of transparent pixels the colour.
DEEP = np.random.RandomState(0).randint(0, 2**16, (5, 6)).astype(">u2")
ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in DEEP))
HEADER = chunk(b"IHDR", struct.pack(">2I5B", 6, 5, 16, 0, 0, 0, 0))
DEEP_PNG = PNG_MAGIC + HEADER + chunk(b"IDAT", ROWS) + chunk(b"IEND", b"")
CLEAR = np.dstack([TALL, np.full(TALL.shape[:2], 7, np.uint8)])
TURNED = Image.Exif()
TURNED[0x0112] = 6  # by 90°
JPEG, PNG, WEBP = jpeg(0), png(0), encoded(TALL, "WEBP")


def written(raw, place, part):
    """The bytes with a part of them written over."""
    return raw[:place] + part + raw[place + len(part) :]


def with_surplus(raw, place, part=b"surplus" * 30):
    return raw[:place] + part + raw[place:]


def with_junk(raw):
    """A JPEG with two bytes before a marker, the first fault that a decoder meets."""
    return with_surplus(raw, raw.index(b"\xff\xdb"), b"\0\0")


@cases(
    "raw, expected",
    transparency=(encoded(CLEAR, mode="RGBA"), TALL),
    of_16_bits=(DEEP_PNG, np.repeat((DEEP >> 8)[..., None], 3, axis=2)),
    png_orientation=(encoded(TALL, exif=TURNED), encoded(TALL)),
    jpeg_orientation=(encoded(TALL, "JPEG", exif=TURNED), encoded(TALL, "JPEG")),
    webp_orientation=(encoded(TALL, "WEBP", exif=TURNED), WEBP),
    surplus_after_end=(with_surplus(JPEG, len(JPEG)), JPEG),
)
def test_what_is_no_colour_and_bytes_after_the_end_are_passed_over(raw, expected):
    if isinstance(expected, bytes):
        assert raw != expected
        expected = pixels.decode(expected).pixels
    np.testing.assert_array_equal(pixels.decode(raw).pixels, expected)


def test_a_faulty_colour_profile_is_passed_over_in_silence(capfd):
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))
    found = pixels.decode(with_surplus(PNG, 33, profile)).pixels
    np.testing.assert_array_equal(found, picture(0))
    assert capfd.readouterr() == ("", "")


NOISE = encoded(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8), "JPEG")
SCAN = len(NOISE) // 2


@cases("first", alone=bytes, after_another=with_junk)
@cases(
    "raw",
    early_end=NOISE[:SCAN] + b"\xff\xd9",
    zeros_in_the_scan=written(NOISE, SCAN, bytes(2_000)),
    hole_in_the_scan=NOISE[:SCAN] + NOISE[SCAN + 2_000 :],
)
def test_a_jpeg_that_lost_pixels_is_refused_whatever_came_before(raw, first):
    with pytest.raises(pixels.BrokenImage, match=r"not a whole image \("):
        pixels.decode(first(raw))


SIZE, MIDDLE = JPEG.index(b"\xff\xc0") + 5, len(PNG) // 2
HUGE = struct.pack(">2H", 65_000, 65_000)
LAST_COEFFICIENT = JPEG.index(b"\xff\xda") + 12


def bomb_bmp():
    """A run-length encoded image of a thousand bytes."""
    sizes = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 8, 1, 0, 0, 0, 256, 0)
    start = b"BM" + struct.pack("<IHHI", 1078, 0, 0, 1078)
    return start + sizes + bytes(1024) + b"\0\1"


def bomb_png():
    rows = zlib.compress(bytes(3751 * 30_000))
    header = chunk(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 1, 0, 0, 0, 0))
    return PNG_MAGIC + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_of_no_size():
    header = chunk(b"IHDR", struct.pack(">2I5B", 0, 0, 8, 2, 0, 0, 0))
    return PNG_MAGIC + header + chunk(b"IDAT", zlib.compress(b"")) + PNG[-12:]


@cases(
    "raw, reason",
    empty=(b"", "the file is empty"),
    words=(b"these are no pixels", "not a JPEG, PNG, BMP or WebP"),
    jpeg_cut_in_header=(JPEG[:300], "not a whole image"),
    jpeg_cut_in_scan=(JPEG[:-100], "Premature end"),
    jpeg_without_its_last_byte=(JPEG[:-1], "Premature end"),
    jpeg_of_12_GB=(written(JPEG, SIZE, HUGE), "65000×65000"),
    jpeg_with_bytes_before_a_marker=(with_junk(JPEG), "extraneous bytes"),
    jpeg_with_bytes_before_its_end=(
        with_surplus(JPEG, len(JPEG) - 2),
        "extraneous bytes",
    ),
    jpeg_with_an_odd_scan_header=(
        written(JPEG, LAST_COEFFICIENT, b"\x3e"),
        "Invalid SOS",
    ),
    bmp_of_5_GB=(bomb_bmp(), "30000×30000"),
    png_of_3_GB=(bomb_png(), "30000×30000"),
    png_of_no_size=(png_of_no_size(), "not a JPEG, PNG"),
    jpeg_of_no_size=(written(JPEG, SIZE, bytes(4)), "not a whole image"),
    png_cut_in_pixels=(PNG[:-100], "Truncated"),
    png_without_its_last_byte=(PNG[:-1], "lacks the end"),
    png_with_a_wrong_bit=(
        written(PNG, MIDDLE, bytes([PNG[MIDDLE] ^ 1])),
        "checksum in b'IDAT'",
    ),
    png_with_a_wrong_name=(PNG.replace(b"IDAT", b"I\xffAT", 1), "not a JPEG, PNG"),
    webp_cut=(WEBP[:-50], "not a whole image"),
    bmp_cut=(encoded(TALL, "BMP")[:-50], "truncated"),
)
def test_bytes_that_are_no_whole_image_are_refused_in_silence(raw, reason, capfd):
    with pytest.raises(pixels.BrokenImage, match=reason):
        pixels.decode(raw)
    assert capfd.readouterr() == ("", "")


def test_warped_side_is_256_for_the_papers_crops_and_in_proportion_for_others():
    sides = {crop: pixels.warp_pixels(crop) for crop in (227, 224, 28, 112, 1)}
    assert sides == {227: 256, 224: 256, 28: 32, 112: 128, 1: 1}


def bilinear(image, side):
    """Each pixel's centre looked up between the four around it, edges repeated."""
    image = image.astype(np.float64)
    for axis in (0, 1):
        n = image.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
        low = np.minimum(place.astype(int), n - 1)
        high = np.minimum(low + 1, n - 1)
        share = np.expand_dims(place - low, (1 - axis, 2))
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


@pytest.mark.parametrize("shape", [(45, 37), (200, 20), (7, 90)])
@pytest.mark.parametrize("augment", ["caffe", "center"])
def test_evaluation_sees_the_middle_of_the_bilinear_square(shape, augment):
    image = picture(1, *shape)
    seen = for_evaluation(image, 28, augment)
    # OpenCV's weights are multiples of 1/2048, and its result is rounded.
    assert np.abs(seen - bilinear(image, 32)[2:30, 2:30]).max() < 1


def block_means(image, top, left, h, w, down, across):
    """Means of h × w blocks of down × across pixels."""
    part = image[top : top + h * down, left : left + w * across].astype(float)
    return part.reshape(h, down, w, across, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 64), (64, 97)])
def test_rrc_evaluation_sees_the_middle_with_its_aspect_kept(shape):
    image = picture(2, *shape)
    blocks = block_means(image, *((n - 64) // 2 for n in shape), 32, 32, 2, 2)
    seen = for_evaluation(image, 28, "rrc")
    assert np.abs(seen - blocks[2:30, 2:30]).max() <= 0.5  # rounding


# Pixel (row, column) of a 32×32 image, which is not resampled, holds (row, column, 0).
PLACES = np.dstack([*np.indices((32, 32)), np.zeros((32, 32))]).astype(np.uint8)


def test_caffe_crops_every_place_alike_and_mirrors_one_in_two():
    random = np.random.RandomState(0)
    tally, mirrored, draws = np.zeros((5, 5), int), 0, 2_000
    for _ in range(draws):
        crop, mirror = for_training(PLACES, 28, "caffe", random)
        top, left, _ = crop[0, 0]
        np.testing.assert_array_equal(crop, PLACES[top : top + 28, left : left + 28])
        tally[top, left] += 1
        mirrored += mirror
    # 80 each and 1,000, with standard deviations of 8.8 and 22; four of each.
    assert tally.min() > 80 - 35
    assert tally.max() < 80 + 35
    assert abs(mirrored - draws / 2) < 89


def test_center_is_the_same_in_training_and_never_mirrored():
    random = np.random.RandomState(0)
    for _ in range(20):
        crop, mirror = for_training(TALL, 28, "center", random)
        assert not mirror
        np.testing.assert_array_equal(crop, for_evaluation(TALL, 28, "center"))


def test_random_regions_keep_their_bounds_and_reach_both_ends():
    random = np.random.RandomState(0)
    regions = [pixels.random_region(400, 400, random) for _ in range(2_000)]
    top, left, h, w = np.array(regions).T
    assert min(top.min(), left.min()) == 0
    assert max((top + h).max(), (left + w).max()) == 400
    # Sides are rounded: half a pixel of the shortest, 98.
    area, aspect = h * w / 400**2, np.log(w / h)
    assert 0.08 * 0.99 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    for ends in (aspect.max(), -aspect.min()):
        assert math.log(4 / 3) * 0.97 < ends < math.log(4 / 3) + 0.011
    small = area < 0.5  # all of these fit: uniform in area and in log aspect
    assert abs(area[small].mean() - 0.29) < 0.015
    assert abs(aspect[small].mean()) < 0.02
    assert abs(aspect[small].std() - math.log(4 / 3) / math.sqrt(3)) < 0.01
    free = (400 - h)[small]  # the place is uniform over what is free
    assert abs((top[small] / free).mean() - 0.5) < 0.03


def test_where_no_draw_fits_the_region_is_the_largest_in_the_middle():
    random = np.random.RandomState(0)
    assert pixels.random_region(10, 1000, random) == (0, 493, 10, 13)
    assert pixels.random_region(1000, 10, random) == (493, 0, 13, 10)


def test_rrc_sees_its_random_region_and_mirrors_one_in_two():
    image, mirrored = picture(3, 160, 120), 0
    for seed in range(200):
        crop, mirror = for_training(image, 8, "rrc", np.random.RandomState(seed))
        top, left, h, w = pixels.random_region(160, 120, np.random.RandomState(seed))
        down, across = h // 8, w // 8  # means of as many pixels, from the middle
        top, left = top + h % down // 2, left + w % across // 2
        h, w = h // down, w // across
        whole = block_means(image, top, left, h, w, down, across)
        # Means are rounded, then OpenCV's weights, then what they give.
        assert np.abs(crop - bilinear(whole, 8)).max() < 1.5
        mirrored += mirror
    assert abs(mirrored - 100) < 29  # four standard deviations


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 60_000), (60_000, 1), (3, 2)])
def test_the_smallest_and_longest_images_fill_the_square(shape, augment):
    image = np.broadcast_to(np.array([9, 80, 200], np.uint8), (*shape, 3)).copy()
    seen = for_evaluation(image, 28, augment)
    crop, _ = for_training(image, 28, augment, np.random.RandomState(0))
    for found in (seen, crop):
        assert found.shape == (28, 28, 3)
        assert (found == image[0, 0]).all()
