"""Where a figure says that it comes from: the recipe digest of its job, in the metadata of its SVG and PNG.

The recipe stands for everything that went into the job and for no time or machine, so that bytes still repeat. A copy
that was renamed or mailed keeps it; a picture that was converted, cropped or photographed does not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from conceptome.errors import DataError
from conceptome.figures.style import PNG_KEY, SVG_PREFIX

_PNG = b"\x89PNG\r\n\x1a\n"
_IDENTIFIER = re.compile(rb"<dc:identifier>\s*" + SVG_PREFIX.encode() + rb"([0-9a-f]{64})\s*</dc:identifier>")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read(path: str | os.PathLike) -> str | None:
    """Give the recipe digest that a figure carries; None where it carries none, or is neither SVG nor PNG.

    The kind is told by the content: a file from elsewhere may have any name.

    Raises
    ------
    DataError
        There is no such file, or it begins as a PNG and is none.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): name an SVG or PNG file") from None
    if not content.startswith(_PNG):
        match = _IDENTIFIER.search(content)
        return match[1].decode() if match else None
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            value = image.info.get(PNG_KEY)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not a whole PNG ({error}): get it again from where it came") from None
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else None
