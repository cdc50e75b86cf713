"""Decodes image files, and crops and scales images to what a network sees.

The format of a file is told by its contents, never by its name. Grey and CMYK images
become RGB, 16 bits become 8, transparency is dropped, and the orientation in EXIF data
is ignored. Raises BrokenImage for every fault that the decoder notices, even one after
which it could go on. JPEG files have no checksum, so some damage of the image data goes
unnoticed and decodes to wrong pixels.
"""

import io
import math
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ..config import Augment

DECODERS = (
    f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__},"
    f" OpenCV {cv2.__version__}"
)
# What one file may declare; a thread that decodes it needs at most 2 GB.
_MOST_PIXELS = 89_478_485  # Pillow's own limit

_JPEG = b"\xff\xd8\xff"
_COLOURS = {"Gray": "grey JPEG", "CMYK": "CMYK JPEG", "YCCK": "CMYK JPEG"}
_PNG_END = b"IEND\xaeB`\x82"
_OTHERS = ("PNG", "BMP", "WEBP")
_AREA = (0.08, 1.0)  # of a random region, as a share of the image's area
_ASPECT = (3 / 4, 4 / 3)  # of a random region: width / height

cv2.setNumThreads(0)  # the caller decodes many images in threads of its own
warnings.filterwarnings("ignore", module=r"PIL\.")  # not of faults, which are raised
Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn; _check_size refuses


class BrokenImage(ValueError):
    """Raised when a file is not a whole image; the message says what is wrong."""


class Decoded(NamedTuple):
    pixels: np.ndarray  # RGB, uint8 [height, width, 3]
    kind: str  # JPEG, grey JPEG, CMYK JPEG, PNG, BMP or WebP


def decode(raw: bytes) -> Decoded:
    """Returns the pixels and the format of an image file; raises BrokenImage."""
    if not raw:
        raise BrokenImage("the file is empty")
    try:
        return _decode_jpeg(raw) if raw.startswith(_JPEG) else _decode_other(raw)
    except BrokenImage:
        raise
    except UnidentifiedImageError:
        raise BrokenImage("not a JPEG, PNG, BMP or WebP image") from None
    # Pillow's decoders raise OSError, SyntaxError, struct.error and others.
    except Exception as error:
        what = str(error) or type(error).__name__
        raise BrokenImage(f"not a whole image ({what})") from error


def _decode_jpeg(raw: bytes) -> Decoded:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    _check_size(width, height)
    # Strict, as libjpeg tells of the first fault alone: a harmless one hides others.
    pixels = simplejpeg.decode_jpeg(raw, "RGB", strict=True)
    return Decoded(pixels, _COLOURS.get(colours, "JPEG"))


def _decode_other(raw: bytes) -> Decoded:
    with Image.open(io.BytesIO(raw), formats=_OTHERS) as image:
        _check_size(*image.size)
        image.verify()  # the checksums of a PNG, which loading does not compare
        kind = str(image.format).replace("WEBP", "WebP")
    if kind == "PNG" and _PNG_END not in raw:
        raise BrokenImage("not a whole image (it lacks the end of a PNG)")
    with Image.open(io.BytesIO(raw), formats=_OTHERS) as image:
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return Decoded(np.repeat(grey[..., None], 3, axis=2), kind)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return Decoded(np.asarray(rgb), kind)


def _check_size(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise BrokenImage(
            f"its header declares {width}×{height} pixels; at most {_MOST_PIXELS:,} are"
            " decoded"
        )


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
