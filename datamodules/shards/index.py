"""Where the images lie in tar shards: made once by reading each shard, then kept in the cache folder.

Shape suffixes: N images, K labels of an image at most.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from datamodules.shards.files import ShardError, ShardFiles, is_url, one_at_a_time
from files.cache import Tensors, cached

_VERSION = 1  # raised when the index changes
_THREADS = 4
_NO_LABEL = -1
_MAX_BYTES = 2**30  # of an image or label file: many times what can be decoded, and less than one read gives
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError)  # of damaged headers


@dataclass(frozen=True)
class SampleKeys:
    """Which members of a sample are its image and its labels, by their endings.

    Attributes:
        image: Endings of the image, the first one that a sample has.
        label: Ending of the labels, or None. The member holds a number or a list of numbers as JSON.
        label_field: Name of the labels where that member is a JSON object, or None.
        num_classes: Number of classes.
    """

    image: tuple[str, ...]
    label: str | None = None
    label_field: str | None = None
    num_classes: int = 0


@dataclass(frozen=True)
class ShardIndex:
    """The images of some shards, in the order in which they lie there.

    Attributes:
        shard: (N,) int32 number of the shard.
        offset: (N,) int64 first byte of the image within the shard.
        size: (N,) int32 bytes, at most 1 GiB.
        hash: (N,) int64 hashes of these bytes.
        labels: (N, K) int32 numbers of the labels, filled up with -1.
        shard_bytes: (shards,) int64 size of each shard.
    """

    shard: Tensor
    offset: Tensor
    size: Tensor
    hash: Tensor
    labels: Tensor
    shard_bytes: Tensor

    def select(self, rows: Tensor) -> ShardIndex:
        """Return the index of some of the images.

        Args:
            rows: (M,) int64 indices, or an (N,) mask.

        Returns:
            An index of M images in the same shards.
        """
        per_image = ("shard", "offset", "size", "hash", "labels")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_image})


def index_shards(files: ShardFiles, keys: SampleKeys, cache_dir: Path) -> ShardIndex:
    """Find the images of all shards.

    Args:
        files: The shards. Those of URLs are all downloaded for it, once.
        keys: What the samples are made of.
        cache_dir: Folder of the index files, one for each shard. A shard of a URL is known by its address alone.
    """

    def indexed(shard: int) -> Tensors:
        location = files.locations[shard]
        identity: tuple[Any, ...] = (location,)
        if not is_url(location):
            state = files.path(shard).stat()
            identity = (str(files.path(shard).absolute()), state.st_size, state.st_mtime_ns)
        key = hashlib.blake2b(repr((_VERSION, keys, identity)).encode(), digest_size=8).hexdigest()
        path = cache_dir / f"{key}.pt"
        with one_at_a_time(path):  # one rank of a machine reads the shard, the others its index
            return cached(path, lambda: _index(files, shard, keys))

    with ThreadPoolExecutor(_THREADS) as pool:
        numbers = range(len(files.locations))
        parts = list(track(pool.map(indexed, numbers), "Indexing shards", len(numbers), transient=True))
    if without := sum(int(part["without_image"]) for part in parts):
        rank_zero_warn(f"samples without an image ({', '.join(keys.image)}) are left out of the shards: {without}")
    width = max(part["labels"].shape[1] for part in parts)
    sizes = torch.tensor([len(part["offset"]) for part in parts])
    labels = [F.pad(part["labels"], (0, width - part["labels"].shape[1]), value=_NO_LABEL) for part in parts]
    return ShardIndex(
        shard=torch.arange(len(parts), dtype=torch.int32).repeat_interleave(sizes),
        offset=torch.cat([part["offset"] for part in parts]),
        size=torch.cat([part["size"] for part in parts]),
        hash=torch.cat([part["hash"] for part in parts]),
        labels=torch.cat(labels),
        shard_bytes=torch.stack([part["bytes"] for part in parts]),
    )


def _index(files: ShardFiles, shard: int, keys: SampleKeys) -> Tensors:
    location, file = files.locations[shard], files.open(shard)
    offsets, sizes, hashes, labels, endings = [], [], [], [], Counter[str]()
    without_image = 0
    for sample, members in _samples(file, location):
        endings.update(members)
        ending = next((ending for ending in keys.image if ending in members), None)
        if ending is None:
            without_image += 1
            continue
        where = f"the sample {sample} of {location}"
        offset, size = _bounded(members, ending, where)
        digest = hashlib.blake2b(os.pread(file.fileno(), size, offset), digest_size=8).digest()
        offsets.append(offset)
        sizes.append(size)
        hashes.append(int.from_bytes(digest, "little", signed=True))
        labels.append(_labels(file, members, keys, where))
    if not offsets:
        found = ", ".join(ending for ending, _ in endings.most_common(8)) or "none"
        raise ShardError(
            f"the shard {location} has no image: no member ends in {', '.join(keys.image)}, but there are the endings "
            f"{found}: set data.image_key=ENDING"
        )
    width = max(1, *map(len, labels))
    return {
        "offset": torch.tensor(offsets, dtype=torch.int64),
        "size": torch.tensor(sizes, dtype=torch.int32),
        "hash": torch.tensor(hashes, dtype=torch.int64),
        "labels": torch.tensor([row + [_NO_LABEL] * (width - len(row)) for row in labels], dtype=torch.int32),
        "bytes": torch.tensor(os.fstat(file.fileno()).st_size),
        "without_image": torch.tensor(without_image),
    }


def _samples(file: BinaryIO, location: str) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield the name of each sample of a shard, and place and size of its members by their endings."""
    from webdataset.tariterators import base_plus_ext

    name, members = None, dict[str, tuple[int, int]]()
    for member in _members(file, location):
        base, ending = base_plus_ext(member.name)
        if base is None or base.rpartition("/")[2].startswith("__"):  # webdataset's own notes
            continue
        if name is not None and base != name:
            yield name, members
            members = {}
        name = base
        members.setdefault(ending.lower(), (member.offset_data, member.size))
    if name is not None:
        yield name, members


def _members(file: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    remedy = "copy or download it again"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0:  # the next header would be looked for at or before this one, for ever
                    raise tarfile.ReadError(f"{member.name} has a negative size")
                if member.isreg():
                    yield member
            end = tar.offset
    except _TAR_ERRORS as error:
        compressed = os.pread(file.fileno(), 2, 0) == b"\x1f\x8b"
        raise ShardError(
            f"the shard {location} is compressed, so that its images cannot be read one by one: unpack it with gunzip"
            if compressed
            else f"the shard {location} is damaged or no tar file ({error}): {remedy}"
        ) from error
    if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
        raise ShardError(f"the shard {location} is truncated: its end mark is missing: {remedy}")


def _bounded(members: dict[str, tuple[int, int]], ending: str, where: str) -> tuple[int, int]:
    """Return place and size of a member that is to be read."""
    offset, size = members[ending]
    if size > _MAX_BYTES:
        raise ShardError(
            f"{where}: .{ending} has {size / 2**30:.1f} GiB, more than the {_MAX_BYTES / 2**30:g} GiB that an image may have: "
            "pack the shard again without it"
        )
    return offset, size


def _labels(file: BinaryIO, members: dict[str, tuple[int, int]], keys: SampleKeys, where: str) -> list[int]:
    if keys.label is None:
        return []
    if keys.label not in members:
        raise ShardError(f"{where} has no member .{keys.label}, but {', '.join(members)}: set data.label_key=ENDING")
    offset, size = _bounded(members, keys.label, where)
    try:
        content = json.loads(os.pread(file.fileno(), size, offset))
    except (ValueError, RecursionError) as error:
        raise ShardError(
            f"{where}: .{keys.label} holds neither a number nor JSON: set data.label_key=ENDING"
        ) from error
    if isinstance(content, dict):
        if keys.label_field not in content:
            raise ShardError(f"{where}: .{keys.label} has the fields {', '.join(content)}: set data.label_field to one")
        content = content[keys.label_field]
    labels = content if isinstance(content, list) else [content]
    if not all(type(label) is int and 0 <= label < keys.num_classes for label in labels):
        raise ShardError(
            f"{where}: {str(labels)[:80]} are no label numbers from 0 to {keys.num_classes - 1}: set data.num_classes=N "
            "and data.label_key"
        )
    return labels
