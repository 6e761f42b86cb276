"""Adapters of public archives: what an input asks for → one file, and a receipt of where its bytes came from."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.errors import SourceError
from conceptome.files import sha256_file, write_json
from conceptome.sources.transfer import Unavailable

if TYPE_CHECKING:
    from conceptome.config.archives import Archive

__all__ = ["ADAPTERS", "retrieve"]

ADAPTERS = ("cell_painting_gallery", "cellxgene", "uniprot")


def retrieve(request: Archive, target: Path, receipt: Path, images: Path | None = None) -> None:
    """Bring what a request asks for.

    Parameters
    ----------
    request
        The `archive` section of an input.
    target
        Where the file goes. It appears complete and checked, or not at all.
    receipt
        Where the receipt goes (JSON): the request, the release or version that answered, and for every file that was
        downloaded its address, size, sha256, and the server's ETag and Last-Modified.
    images
        Folder for the images, where the request asks for some.

    Raises
    ------
    SourceError
        One line: the archive, what was asked for, what is wrong with the answer, how to mend it.
    """
    target = Path(target)
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    made = scratch / target.name
    adapter = importlib.import_module(f"conceptome.archives.{request.adapter}")
    try:
        told = adapter.retrieve(request, made, *([scratch / "images"] if images is not None else []))
        digest = sha256_file(made)
        if request.sha256 is not None and digest != request.sha256:
            raise SourceError(
                f"{request.adapter}: {target.name} has sha256 {digest}, but the configuration asks for "
                f"{request.sha256}: the archive gives other data than when this was written down; take the new digest "
                "into `archive.sha256` if you want them"
            )
        if images is not None:
            shutil.rmtree(images, ignore_errors=True)
            (scratch / "images").replace(images)
        made.replace(target)
    except Unavailable as reason:
        raise SourceError(f"{request.adapter}: {reason}") from None
    except OSError as error:
        where = error.filename or target
        raise SourceError(f"{request.adapter}: {error.strerror or error} ({where}): nothing was written") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(receipt, {"request": request.model_dump(mode="json"), "sha256": digest, **told})
