"""The text that a MetaImage or NRRD file begins with, looked at before a library does: it may name another file to be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from voxtile.errors import DataError, reason

_MOST = 2**20  # bytes of a header
# A field of a MetaImage. Of a line without a separator MetaIO takes the next line's, so none is let through.
_FIELD = re.compile(rb"(?P<name>[^=:\r\n]{1,200})[=:](?P<value>[^\r\n]{0,32000})\r?\n|[ \t]*\r?\n")
_NRRD_FILE = re.compile(rb"(?im)^[ \t]*data[ \t]*file[ \t]*:(.*)$")
_GZIPPED = re.compile(rb"(?im)^encoding: (?:gz|gzip)[ \t]*$")
_SKIPS = re.compile(rb"(?im)^(?:line|byte) ?skip:")
_PLACED = re.compile(rb"(?im)^(?:TransformMatrix|Rotation|Orientation|space)[ \t]*[=:]")


@dataclass(frozen=True)
class TextHeader:
    """What is known of a file before it is opened.

    Attributes:
        data: the file that holds the voxels, None where they follow in the same file.
        placed: whether the header says which way the axes point.
        packed: "gzip" (NRRD) or "zlib" (MetaImage) where the voxels are, and where they begin is known; else "".
        begins: where in their file the voxels begin.
        stored: bytes that there are of the voxels of a MetaImage; None for NRRD, whose reader counts itself.
        claimed: bytes that a compressed MetaImage says there are; None where it says nothing.
        text: whether a MetaImage's voxels are written as text.
    """

    data: Path | None
    placed: bool
    packed: str = ""
    begins: int = 0
    stored: int | None = None
    claimed: int | None = None
    text: bool = False


def read_header(path: Path) -> TextHeader:
    """Reads what stands before the voxels.

    Raises:
        DataError: The file cannot be read, is neither MetaImage nor NRRD, or names a file outside of its folder or several.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(_MOST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    return (_meta if path.suffix.lower() in (".mha", ".mhd") else _nrrd)(path, begin)


def _meta(path: Path, begin: bytes) -> TextHeader:
    fields: dict[bytes, bytes] = {}
    at = 0
    while b"ElementDataFile" not in fields:
        line = _FIELD.match(begin, at)
        if line is None:
            raise DataError(
                f"{path} cannot be read as a MetaImage: its header has no line 'name = value' after its first {at} bytes, and none "
                "before says where the voxels are (ElementDataFile). The file is cut off or of another kind; fetch it again."
            )
        at = line.end()
        if line["name"]:
            fields[line["name"].strip()] = line["value"].strip()
    if begin.count(b"ElementDataFile") > 1:
        raise DataError(f"{path} names the file of its voxels (ElementDataFile) more than once. Take the other lines out.")
    name = fields[b"ElementDataFile"]
    data = None if name.lower() == b"local" else _beside(path, name)
    stored = (data or path).stat().st_size - (0 if data else at)
    claimed = fields.get(b"CompressedDataSize", b"")
    return TextHeader(
        data, bool(_PLACED.search(begin[:at])), "zlib" if _is_true(fields.get(b"CompressedData")) else "", 0 if data else at,
        stored=stored, claimed=int(claimed) if claimed.isdigit() else None, text=not _is_true(fields.get(b"BinaryData", b"True")),
    )  # fmt: skip


def _nrrd(path: Path, begin: bytes) -> TextHeader:
    if not begin.startswith(b"NRRD0"):
        raise DataError(f"{path} cannot be read as NRRD: it does not begin with 'NRRD'. The file is cut off or of another kind.")
    lines = begin.replace(b"\r", b"\n")
    names = _NRRD_FILE.findall(lines)
    if len(names) > 1:
        raise DataError(f"{path} names the file of its voxels ('data file:') more than once. Take the other lines out.")
    data = _beside(path, names[0].strip()) if names else None
    end = re.search(rb"\n\r?\n", begin)
    begins = 0 if data or end is None else end.end()
    packed = "gzip" if _GZIPPED.search(lines) and not _SKIPS.search(lines) else ""
    return TextHeader(data, bool(_PLACED.search(lines)), packed, begins)


def _is_true(value: bytes | None) -> bool:
    return value is not None and value[:1].lower() in (b"t", b"1")


def _beside(path: Path, given: bytes) -> Path:
    """The file that a header names, which must be one below its folder."""
    name = given.decode("utf-8", "replace")
    # A pattern or a list is several files, "-" is what is typed, and the others are paths of other systems.
    odd = not name or name == "-" or name.startswith("~") or re.match(r"LIST\b", name) or re.search(r"[%*?<>|:\\�]", name)
    if odd or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"{path} names '{name}' as the file of its voxels. Expected the name of one file in the folder {path.parent} or below "
            "it: a header from elsewhere could so have any file read. Put the voxels there and correct the line, or where you "
            "trust it, write header and voxels as one .mha or .nrrd file."
        )
    found = path.parent / name
    if not found.is_file():
        raise DataError(f"{path} names '{name}' as the file of its voxels, and {found} does not exist. Fetch it, too.")
    return found
