"""Bytes of one image file to the pixels a network sees; no files, no state.

What a file holds decides how it is read, never its name. Grey and CMYK become RGB,
16 bits become 8, transparency is dropped, EXIF orientation is not applied. Refuses
what cannot be decoded whole, as far as that shows: JPEG has no checksums, so a damaged
scan may decode to wrong pixels without a word.
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
# Warnings of libjpeg after which every pixel is there all the same.
_HARMLESS = ("extraneous bytes", "Invalid SOS parameters")
_AREA = (0.08, 1.0)  # of a random region: share of the image
_ASPECT = (3 / 4, 4 / 3)  # of a random region: width / height

cv2.setNumThreads(0)  # the caller's threads are enough
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BrokenImage(ValueError):
    """Why bytes are not an image."""


def kind(raw: bytes) -> str:
    """`JPEG`, `grey JPEG`, `CMYK JPEG`, `PNG`, `BMP`, `WebP` or `other`, unchecked."""
    if raw.startswith(_JPEG):
        colours = _header(raw)[2]
        return {"Gray": "grey JPEG", "CMYK": "CMYK JPEG", "YCCK": "CMYK JPEG"}.get(
            colours, "JPEG"
        )
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "WebP"
    starts = {_PNG: "PNG", b"BM": "BMP"}
    return next(
        (name for start, name in starts.items() if raw.startswith(start)), "other"
    )


def decode(raw: bytes) -> np.ndarray:
    """RGB, uint8 [height, width, 3]; raises BrokenImage."""
    if not raw:
        raise BrokenImage("an empty file")
    if raw.startswith(_JPEG):
        height, width, colours = _header(raw)
        if height * width > _MOST_PIXELS:
            raise BrokenImage(f"a header that asks for {width}×{height} pixels")
        if colours:
            return _decode_jpeg(raw)
    return _decode_other(_critical_chunks(raw) if raw.startswith(_PNG) else raw)


def _header(raw: bytes) -> tuple[int, int, str]:
    """Height, width and colours of a JPEG; no colours if simplejpeg cannot tell."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return 0, 0, ""
    return height, width, colours


def _decode_jpeg(raw: bytes) -> np.ndarray:
    reason = ""
    for strict in (True, False):
        try:
            image: np.ndarray = simplejpeg.decode_jpeg(raw, "RGB", strict=strict)
            return image
        except ValueError as error:
            reason = str(error)
        if not any(warning in reason for warning in _HARMLESS):
            break
    raise BrokenImage(reason)


def _decode_other(raw: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error:
        image = None
    # The stubs know nothing of None, which is what OpenCV returns for no image.
    if not isinstance(image, np.ndarray):
        raise BrokenImage("no image, or only a part of one")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _critical_chunks(raw: bytes) -> bytes:
    """A PNG without its remarks, each chunk of pixels checked against its checksum.

    libpng would print what it thinks of either.
    """
    kept, start, name = [_PNG], len(_PNG), b""
    while name != b"IEND":
        if len(raw) < start + 12:
            raise BrokenImage("a PNG cut short")
        length, name = struct.unpack_from(">I4s", raw, start)
        chunk = raw[start : start + 12 + length]
        critical = name[:1].isupper()
        if len(chunk) < 12 + length:
            raise BrokenImage("a PNG cut short")
        if critical and zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:]:
            raise BrokenImage(f"a PNG with a wrong checksum in its {name!r}")
        if critical:
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def warp_pixels(pixels: int) -> int:
    """The side of the image that is cropped to `pixels`: 256 for the papers' 224, 227.

    Other sizes keep the proportion of 256 to 224.
    """
    return 256 if 224 <= pixels <= 227 else pixels * 8 // 7


def for_training(
    image: np.ndarray, pixels: int, augment: Augment, random: np.random.RandomState
) -> tuple[np.ndarray, bool]:
    """An image as one epoch sees it, and whether the device is to mirror it.

    caffe: all of the image, its aspect lost, in a square; a random crop; mirror one in
    two. rrc: a `random_region`; mirror one in two. center: as in evaluation, no mirror.
    """
    if augment == "center":
        return for_evaluation(image, pixels, augment), False
    if augment == "caffe":
        warped = _warp(image, pixels)
        top, left = random.randint(0, len(warped) - pixels + 1, 2)
        crop = warped[top : top + pixels, left : left + pixels]
    else:
        top, left, height, width = random_region(image.shape[0], image.shape[1], random)
        crop = _resize(image[top : top + height, left : left + width], pixels)
    return crop, bool(random.randint(2))


def for_evaluation(image: np.ndarray, pixels: int, augment: Augment) -> np.ndarray:
    """The middle of the warped image, or for rrc of that with its aspect kept.

    The latter scales the shorter side to `warp_pixels`; the ends of the longer one,
    which the crop never reaches, are cut first, so that no strip grows out of bounds.
    """
    if augment == "rrc":
        side = min(image.shape[:2])
        return _centre(_resize(_centre(image, side), warp_pixels(pixels)), pixels)
    return _centre(_warp(image, pixels), pixels)


def random_region(
    height: int, width: int, random: np.random.RandomState
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a region of random area and aspect.

    Szegedy et al. 2015, §6: 8 % … 100 % of the area; width / height in 3/4 … 4/3, here
    uniform in its logarithm. Where ten draws do not fit: the largest in the middle.
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
    """The square that Caffe's convert_imageset makes: bilinear, not antialiased."""
    side = warp_pixels(pixels)
    # A copy, pixel for pixel, where the image has that size already.
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """Means of h // side × w // side pixels, then bilinear.

    So below a factor of 2 it is not antialiased, as TensorFlow's and MLPerf's ResNets;
    averaging by such factors takes OpenCV far longer.
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
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    return image[top : top + side, left : left + side]
