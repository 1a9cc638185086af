"""One small picture in the forms in which people have it, and masks of one hole in it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
EXIF_ROTATED = 6  # shown turned by a quarter to the right


def scene(width: int = SIZE, height: int = SIZE) -> np.ndarray:
    """(height, width, 3) uint8: two ramps and a red mark at the top left, so that no turn or mirror of it is the same."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([30 + 200 * x // max(1, width - 1), 50 + 150 * y // max(1, height - 1), 0 * x + 80], axis=-1)
    picture[height // 8 : height // 3, width // 8 : width // 2] = (230, 20, 40)
    return picture.astype(np.uint8)


def grey() -> np.ndarray:
    return np.asarray(Image.fromarray(scene()).convert("L"))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path: Path, values: np.ndarray, colour_type: int, bits: int, extra: bytes = b"") -> None:
    """Write what Pillow cannot: PNG files of 16 bits in colour, with opacity, or with a transparent value."""
    height, width = values.shape[:2]
    kind = ">u2" if bits == 16 else "u1"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_bomb(path: Path, width: int, height: int) -> None:
    """A black one-bit picture that is a thousand times larger than its file."""
    compressor, row = zlib.compressobj(9), b"\0" * (1 + (width + 7) // 8)
    rows = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def half_opacity() -> np.ndarray:
    """(SIZE, SIZE) uint8: the right half is transparent."""
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[:, SIZE // 2 :] = 0
    return alpha


def hole() -> np.ndarray:
    """(SIZE, SIZE) bool: what the masks say is missing."""
    missing = np.zeros((SIZE, SIZE), bool)
    missing[4:10, 5:11] = True
    return missing
