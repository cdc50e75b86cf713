"""Damaged image files: each is refused with a reason, or is one that Pillow loads.

`--damaged-copies 5000` is the thorough run, and with `-s` it says what it found. Where
libjpeg's own program `djpeg` is on the PATH, it judges JPEGs too.
"""

import io
import resource
import shutil
import subprocess

import numpy as np
import pytest
from image_trees import encoded, picture
from PIL import Image

from examples.imagenet.data.pixels import BrokenImage, decode

NOISE = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
WHOLE = {
    "JPEG": [
        encoded(picture(0, 80, 100), "JPEG"),
        encoded(picture(1), "JPEG", progressive=True),
        encoded(picture(2), "JPEG", "L"),
        encoded(picture(3), "JPEG", "CMYK"),
        encoded(NOISE, "JPEG", restart_marker_blocks=2),
    ],
    "PNG": [encoded(picture(0), "PNG", mode) for mode in ("RGB", "L", "P", "RGBA")],
    "BMP": [encoded(picture(0), "BMP", mode) for mode in ("RGB", "L", "P", "1")],
    "WEBP": [
        encoded(picture(0), "WEBP"),
        encoded(picture(1), "WEBP", lossless=True),
        encoded(NOISE, "WEBP", "RGBA"),
    ],
}
DJPEG = shutil.which("djpeg")


def whole(raw, form):
    """What Pillow in its strict mode, and for JPEG djpeg -strict, make of a file."""
    with Image.open(io.BytesIO(raw)) as image:
        image.verify()
    with Image.open(io.BytesIO(raw)) as image:
        image.load()
    if form == "JPEG" and DJPEG:
        command = [DJPEG, "-strict", "-outfile", "/dev/null"]
        subprocess.run(command, input=raw, check=True, capture_output=True)
    return image.size


@pytest.mark.parametrize("form", WHOLE)
def test_of_damaged_copies_none_is_decoded_that_strict_programs_refuse(
    form, damaged_copies
):
    for raw in WHOLE[form]:
        assert decode(raw).pixels.shape[1::-1] == whole(raw, form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons, sizes = [], []
    for raw in damaged_copies(WHOLE[form]):
        try:
            pixels = decode(raw).pixels
        except BrokenImage as error:
            reasons.append(str(error))
        else:
            sizes.append((pixels.shape[1::-1], whole(raw, form)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{form}: {len(reasons)} refused, {len(sizes)} decoded, {after:,} kB")
    assert reasons
    assert all(reasons)
    assert all(ours == theirs for ours, theirs in sizes)
    assert after <= max(before, 1_000_000)  # kB
