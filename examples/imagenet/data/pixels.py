"""Decodes image files, and crops and scales images to what a network sees.

The format of a file is told by its contents, never by its name. Grey and CMYK images
become RGB, 16 bits become 8, transparency is dropped, and the orientation in EXIF data
is ignored. Raises BrokenImage if an image cannot be decoded in full. JPEG files have no
checksum, so damaged image data may go unnoticed and decode to wrong pixels.
"""

import math
import struct
import zlib

import cv2
import numpy as np
import simplejpeg

from ..config import Augment

DECODERS = f"simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}"

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 2**28  # a damaged header may ask for 12 GB
# Warnings of libjpeg in spite of which every pixel is decoded.
_HARMLESS = ("extraneous bytes", "Invalid SOS parameters")
_AREA = (0.08, 1.0)  # of a random region, as a share of the image's area
_ASPECT = (3 / 4, 4 / 3)  # of a random region: width / height

cv2.setNumThreads(0)  # the caller decodes many images in threads of its own
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BrokenImage(ValueError):
    """Raised when bytes are not a whole image; the message says what is wrong."""


def kind(raw: bytes) -> str:
    """Returns the format of an image file, told by its first bytes.

    It is `JPEG`, `grey JPEG`, `CMYK JPEG`, `PNG`, `BMP`, `WebP` or `other`.
    """
    if raw.startswith(_JPEG):
        colours = {"Gray": "grey JPEG", "CMYK": "CMYK JPEG", "YCCK": "CMYK JPEG"}
        return colours.get(_header(raw)[2], "JPEG")
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "WebP"
    if raw.startswith(b"BM"):
        return "BMP"
    return "PNG" if raw.startswith(_PNG) else "other"


def decode(raw: bytes) -> np.ndarray:
    """Returns an image file's pixels as RGB, uint8 [height, width, 3].

    Raises BrokenImage if the bytes are not a whole image.
    """
    if not raw:
        raise BrokenImage("an empty file")
    if raw.startswith(_JPEG):
        height, width, colours = _header(raw)
        if height * width > _MOST_PIXELS:
            raise BrokenImage(
                f"a JPEG header that states more pixels than allowed, {width}×{height}"
            )
        if colours:
            return _decode_jpeg(raw)
    return _decode_other(_critical_chunks(raw) if raw.startswith(_PNG) else raw)


def _header(raw: bytes) -> tuple[int, int, str]:
    """Returns height, width and colour space of a JPEG; 0, 0, "" if unknown."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return 0, 0, ""
    return height, width, colours


def _decode_jpeg(raw: bytes, *, strict: bool = True) -> np.ndarray:
    """Decodes a JPEG file to RGB pixels.

    With `strict`, warnings of libjpeg that hint at damage raise BrokenImage.
    """
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(raw, "RGB", strict=strict)
    except ValueError as error:
        if strict and any(warning in str(error) for warning in _HARMLESS):
            return _decode_jpeg(raw, strict=False)
        raise BrokenImage(str(error)) from None
    return image


def _decode_other(raw: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error:
        image = None
    # OpenCV returns None for bytes that are no image, which its type stubs do not say.
    if not isinstance(image, np.ndarray):
        raise BrokenImage("no image, or only a part of one")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _critical_chunks(raw: bytes) -> bytes:
    """Returns a PNG without its optional chunks, after checking the others' checksums.

    Otherwise libpng, which decodes it, would print warnings about faulty chunks.
    """
    kept, start, name = [_PNG], len(_PNG), b""
    while name != b"IEND":
        if len(raw) < start + 12:
            raise BrokenImage("a PNG file that is cut short")
        length, name = struct.unpack_from(">I4s", raw, start)
        chunk = raw[start : start + 12 + length]
        if len(chunk) < 12 + length:
            raise BrokenImage("a PNG file that is cut short")
        if name[:1].isupper():  # a critical chunk, without which no image is decoded
            if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:]:
                raise BrokenImage(
                    f"a PNG file with a wrong checksum in its chunk {name!r}"
                )
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def warp_pixels(pixels: int) -> int:
    """Returns the side of the square from which a crop of side `pixels` is cut.

    It is 256 for the crops of 224 and 227 pixels that papers use, and 8/7 of the crop's
    side, the ratio of 256 to 224, for others.
    """
    return 256 if 224 <= pixels <= 227 else pixels * 8 // 7


def for_training(
    image: np.ndarray, pixels: int, augment: Augment, random: np.random.RandomState
) -> tuple[np.ndarray, bool]:
    """Returns an image's crop for training, and whether the device is to mirror it.

    The crop is a square of side `pixels`. With `augment` "caffe" the image is stretched
    to a slightly larger square and cropped at a random place. With "rrc" a region of
    random place, area and aspect ratio is scaled to the square. Both mirror every
    second image on average. With "center" the crop is that of evaluation, and no image
    is mirrored.
    """
    if augment == "center":
        return for_evaluation(image, pixels, augment), False
    if augment == "caffe":
        warped = _warp(image, pixels)
        top, left = random.randint(0, len(warped) - pixels + 1, 2)
        crop = warped[top : top + pixels, left : left + pixels]
    else:
        top, left, h, w = random_region(image.shape[0], image.shape[1], random)
        crop = _resize(image[top : top + h, left : left + w], pixels)
    return crop, bool(random.randint(2))


def for_evaluation(image: np.ndarray, pixels: int, augment: Augment) -> np.ndarray:
    """Returns the crop of an image for evaluation, a square of side `pixels`.

    The image is scaled to a square of side `warp_pixels(pixels)`, whose middle is the
    crop. With `augment` "rrc" the middle square of the image is scaled, so that the
    aspect ratio is kept, and otherwise the whole image is stretched.
    """
    if augment == "rrc":
        # The ends of a long image are cut first, so that scaling needs little memory.
        side = min(image.shape[:2])
        return _centre(_resize(_centre(image, side), warp_pixels(pixels)), pixels)
    return _centre(_warp(image, pixels), pixels)


def random_region(
    height: int, width: int, random: np.random.RandomState
) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a random region of an image.

    As in Szegedy et al. 2015, section 6, it covers 8 % to 100 % of the area, and its
    ratio of width to height is from 3/4 to 4/3, here uniform in the logarithm. After
    ten draws that do not fit into the image, it is the largest region with such a ratio
    in the middle of the image.
    """
    low, high = _ASPECT
    for _ in range(10):
        area = height * width * random.uniform(*_AREA)
        aspect = math.exp(random.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = random.randint(height - h + 1), random.randint(width - w + 1)
            return top, left, h, w
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def _warp(image: np.ndarray, pixels: int) -> np.ndarray:
    """Stretches an image to a square of side `warp_pixels(pixels)`.

    It interpolates bilinearly without antialiasing, as Caffe's convert_imageset does.
    """
    side = warp_pixels(pixels)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """Scales an image to a square: averages blocks of pixels, then interpolates.

    A block has height // side × width // side pixels, and the interpolation is
    bilinear. Below a factor of 2 nothing is averaged, as for TensorFlow's and MLPerf's
    ResNets, because OpenCV averages by such factors far more slowly.
    """
    height, width = image.shape[:2]
    down, across = max(1, height // side), max(1, width // side)
    if down > 1 or across > 1:
        top, left = height % down // 2, width % across // 2
        size = (width // across, height // down)
        whole = image[top : top + down * size[1], left : left + across * size[0]]
        image = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    """Returns the square of `side` × `side` pixels in the middle of an image."""
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    return image[top : top + side, left : left + side]
