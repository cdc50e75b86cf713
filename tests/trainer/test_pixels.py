"""One image: bytes to RGB, RGB to the square that a network sees."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from image_trees import encoded, jpeg, picture, png
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


@pytest.mark.parametrize(
    ("raw", "tolerance"),
    [
        pytest.param(encoded(TALL, "JPEG"), 0, id="jpeg"),
        pytest.param(encoded(TALL, "JPEG", progressive=True), 0, id="progressive_jpeg"),
        pytest.param(encoded(TALL, "JPEG", "L"), 0, id="grey_jpeg"),
        # The ink's product is rounded differently.
        pytest.param(encoded(TALL, "JPEG", "CMYK"), 1, id="cmyk_jpeg"),
        pytest.param(bytes(YCCK), 1, id="ycck_jpeg"),
        pytest.param(encoded(TALL), 0, id="png"),
        pytest.param(encoded(TALL, "PNG", "L"), 0, id="grey_png"),
        pytest.param(encoded(TALL, "PNG", "P"), 0, id="palette_png"),
        pytest.param(encoded(TALL, "BMP"), 0, id="bmp"),
        pytest.param(encoded(TALL, "WEBP", lossless=True), 0, id="webp"),
    ],
)
def test_decodes_what_pillow_decodes(raw, tolerance):
    image = pixels.decode(raw).pixels
    assert (image.shape, image.dtype) == (TALL.shape, np.uint8)
    oracle = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    assert np.abs(image.astype(int) - oracle).max() <= tolerance


def test_transparency_is_dropped_and_the_colour_below_kept():
    rgba = np.dstack([TALL, np.full(TALL.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(
        pixels.decode(encoded(rgba, mode="RGBA")).pixels, TALL
    )


def test_of_16_bits_the_upper_8_are_kept():
    deep = np.random.RandomState(0).randint(0, 2**16, (5, 6)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = chunk(b"IHDR", struct.pack(">2I5B", 6, 5, 16, 0, 0, 0, 0))
    raw = b"\x89PNG\r\n\x1a\n" + header
    raw += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = np.repeat((deep >> 8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels.decode(raw).pixels, expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_not_applied(form):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned, plain = encoded(TALL, form, exif=exif), encoded(TALL, form)
    assert turned != plain
    np.testing.assert_array_equal(
        pixels.decode(turned).pixels, pixels.decode(plain).pixels
    )


def test_bytes_after_the_end_of_an_image_are_passed_over():
    faulty = jpeg(0) + b"surplus"
    np.testing.assert_array_equal(
        pixels.decode(faulty).pixels, pixels.decode(jpeg(0)).pixels
    )


SOUND = jpeg(0)
SCAN = SOUND.index(b"\xff\xda")


def with_junk(raw):
    """A harmless fault, two bytes before a marker, which comes before every other."""
    place = raw.index(b"\xff\xdb")
    return raw[:place] + b"\0\0" + raw[place:]


NOISE = encoded(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8), "JPEG")
MIDDLE = len(NOISE) // 2
DAMAGED = {
    "early_end": NOISE[:MIDDLE] + b"\xff\xd9",
    "zeros_in_the_scan": NOISE[:MIDDLE] + bytes(2_000) + NOISE[MIDDLE + 2_000 :],
    "hole_in_the_scan": NOISE[:MIDDLE] + NOISE[MIDDLE + 2_000 :],
}


@pytest.mark.parametrize("first", [bytes, with_junk], ids=["alone", "after_another"])
@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_jpeg_that_lost_pixels_is_refused_whatever_came_before(raw, first):
    with pytest.raises(pixels.BrokenImage, match=r"not a whole image \("):
        pixels.decode(first(raw))


WEBP = encoded(TALL, "WEBP")
FLIPPED = bytearray(png(0))
FLIPPED[len(FLIPPED) // 2] ^= 1
MISNAMED = png(0).replace(b"IDAT", b"I\xffAT", 1)
HUGE = bytearray(jpeg(0))
SIZE = HUGE.index(b"\xff\xc0") + 5
HUGE[SIZE : SIZE + 4] = struct.pack(">2H", 65_000, 65_000)
NONE = HUGE[:SIZE] + bytes(4) + HUGE[SIZE + 4 :]


def bomb_bmp():
    """A run-length encoded image of a thousand bytes."""
    sizes = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 8, 1, 0, 0, 0, 256, 0)
    return (
        b"BM" + struct.pack("<IHHI", 1078, 0, 0, 1078) + sizes + bytes(1024) + b"\0\1"
    )


def bomb_png():
    rows = zlib.compress(bytes(3751 * 30_000))
    header = chunk(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(
            b"these are no pixels", "not a JPEG, PNG, BMP or WebP", id="words"
        ),
        pytest.param(jpeg(0)[:300], "not a whole image", id="jpeg_cut_in_header"),
        pytest.param(jpeg(0)[:-100], "Premature end", id="jpeg_cut_in_scan"),
        pytest.param(jpeg(0)[:-1], "Premature end", id="jpeg_without_its_last_byte"),
        pytest.param(bytes(HUGE), "65000×65000", id="jpeg_of_12_GB"),
        pytest.param(
            with_junk(SOUND), "extraneous bytes", id="jpeg_with_bytes_before_a_marker"
        ),
        pytest.param(
            SOUND[: SCAN + 12] + b"\x3e" + SOUND[SCAN + 13 :],
            "Invalid SOS",
            id="jpeg_with_an_odd_scan_header",
        ),
        pytest.param(bomb_bmp(), "30000×30000", id="bmp_of_5_GB"),
        pytest.param(bomb_png(), "30000×30000", id="png_of_3_GB"),
        pytest.param(bytes(NONE), "not a whole image", id="jpeg_of_no_size"),
        pytest.param(png(0)[:-100], "Truncated", id="png_cut_in_pixels"),
        pytest.param(png(0)[:-1], "lacks the end", id="png_without_its_last_byte"),
        pytest.param(bytes(FLIPPED), "checksum in b'IDAT'", id="png_with_a_wrong_bit"),
        pytest.param(MISNAMED, "not a JPEG, PNG", id="png_with_a_wrong_name"),
        pytest.param(WEBP[:-50], "not a whole image", id="webp_cut"),
        pytest.param(encoded(TALL, "BMP")[:-50], "truncated", id="bmp_cut"),
    ],
)
def test_bytes_that_are_no_whole_image_are_refused_in_silence(raw, reason, capfd):
    with pytest.raises(pixels.BrokenImage, match=reason):
        pixels.decode(raw)
    assert capfd.readouterr() == ("", "")


def test_a_faulty_colour_profile_is_passed_over_in_silence(capfd):
    whole = png(0)
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))
    filled = whole[:33] + profile + whole[33:]
    np.testing.assert_array_equal(pixels.decode(filled).pixels, picture(0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("crop", "side"), [(227, 256), (224, 256), (28, 32), (112, 128), (1, 1)]
)
def test_warped_side_is_256_for_the_papers_crops_and_in_proportion_for_others(
    crop, side
):
    assert pixels.warp_pixels(crop) == side


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


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 64), (64, 97)])
def test_rrc_evaluation_sees_the_middle_with_its_aspect_kept(shape):
    image = picture(2, *shape)
    top, left = ((n - 64) // 2 for n in shape)
    square = image[top : top + 64, left : left + 64].astype(float)
    blocks = square.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
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
        whole = image[top : top + h * down, left : left + w * across].astype(float)
        whole = whole.reshape(h, down, w, across, 3).mean(axis=(1, 3))
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
    expected = np.broadcast_to(image[0, 0], (28, 28, 3))
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(crop, expected)
