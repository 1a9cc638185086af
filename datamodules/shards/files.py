"""The files of tar shards: local ones as they are, those of URLs in a cache folder of bounded size."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO, BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from files.locks import locked
from files.whole import WriteError, whole_file

_TIMEOUT = 30.0  # seconds without an answer
_PAUSES = (1.0, 4.0)  # seconds before each further try of a download
_CHUNK = 2**20


class ShardError(OSError):
    """A shard cannot be read; the message names it and the remedy in one sentence."""


def is_url(location: str) -> bool:
    """Say whether a shard is somewhere else than in a local file.

    Args:
        location: A path or URL; ``pipe:COMMAND`` is a URL too.

    Returns:
        Whether it has to be fetched.
    """
    scheme = location.partition(":")[0]
    return scheme == "pipe" or ("://" in location and scheme != "file")


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Do something in one process of this machine at a time; the lock goes with the process.

    Where the folder cannot be written, nothing is locked: what is done there says so itself.

    Args:
        path: What is worked on; the lock lies next to it.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
        yield


class ShardFiles:
    """Opens shards for reading at any place, also from many threads.

    A shard of a URL is downloaded when it is first needed, whole or not at all, by one process of the machine at a time.
    When the folder would grow beyond its size, the shards that were not opened for the longest time go first; they are
    downloaded again when their turn comes.

    Args:
        locations: Paths and URLs.
        folder: Where downloaded shards lie.
        max_bytes: Size of that folder, or None for any.
        max_open: Files that are kept open.
    """

    def __init__(self, locations: list[str], folder: Path, max_bytes: int | None = None, max_open: int = 64) -> None:
        self.locations = locations
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_open = max_open
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        self._shard_locks: dict[int, threading.Lock] = {}

    def path(self, shard: int) -> Path:
        """Return where a shard's file is, or would be once it is downloaded.

        Args:
            shard: Number of the shard.
        """
        location = self.locations[shard]
        if not is_url(location):
            return Path(location.removeprefix("file://")).expanduser()
        name = "pipe" if location.startswith("pipe:") else Path(urlsplit(location).path).name
        digest = hashlib.blake2b(location.encode(), digest_size=8).hexdigest()
        return self.folder / f"{digest}-{name or 'shard'}"

    def open(self, shard: int) -> BinaryIO:
        """Open a shard; read it by ``os.pread``, for others use the same file.

        Args:
            shard: Number of the shard.

        Returns:
            The file, which closes with its last user.
        """
        with self._lock:
            own = self._shard_locks.setdefault(shard, threading.Lock())
        with own:
            with self._lock:
                if shard in self._open:
                    self._open.move_to_end(shard)
                    return self._open[shard]
            file = self._opened(shard)
            with self._lock:
                self._open[shard] = file
                if len(self._open) > self.max_open:
                    self._open.popitem(last=False)
            return file

    def _opened(self, shard: int) -> BinaryIO:
        location, path = self.locations[shard], self.path(shard)
        if not is_url(location):
            try:
                return path.open("rb")
            except OSError as error:
                raise ShardError(f"the shard {path} cannot be opened ({error.strerror}): check its path") from error
        with one_at_a_time(path):
            while True:
                if not path.exists():
                    self._fetch(location, path)
                with suppress(FileNotFoundError):  # others have made room for theirs just now
                    os.utime(path)  # used last now
                    return path.open("rb")

    def _fetch(self, location: str, path: Path) -> None:
        try:
            self._download(location, path)
        except (OSError, WriteError, HTTPException, ValueError) as error:  # ValueError: an unknown kind of address
            cause = error.__cause__ if isinstance(error, WriteError) else error
            reason = cause if isinstance(cause, HTTPError) else getattr(cause, "reason", None) or cause
            raise ShardError(
                f"the shard {location} cannot be downloaded to {path.parent} ({reason}): check the address, the "
                "network and the space on the disk, or set paths.cache_dir to another folder"
            ) from error

    def _download(self, url: str, path: Path) -> None:
        """Write a shard whole or not at all; an interrupted HTTP transfer continues where it stopped."""
        with whole_file(path) as file:
            if url.startswith(("http://", "https://")):
                _Transfer(url, file).run()
            else:
                from webdataset.gopen import gopen

                with gopen(url) as stream:
                    shutil.copyfileobj(stream, file, _CHUNK)
            self._make_room(file.tell())

    def _make_room(self, size: int) -> None:
        if self.max_bytes is None:
            return
        with one_at_a_time(self.folder / "room"):
            files = sorted((f.stat().st_mtime_ns, f) for f in self.folder.iterdir() if not f.name.startswith("."))
            total = size + sum(file.stat().st_size for _, file in files)
            for _, file in files:
                if total <= self.max_bytes:
                    break
                total -= file.stat().st_size
                file.unlink()


class _Transfer:
    """A download by HTTP that continues where it stopped, in further tries at what may be over soon."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self.url = url
        self.file = file
        self.tag: str | None = None  # of the version that the file holds the beginning of

    def run(self) -> None:
        for pause in (*_PAUSES, None):
            try:
                self._go_on()
                return
            except (OSError, HTTPException) as error:
                refused = isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 429)
                if refused or pause is None:
                    raise
            time.sleep(pause)

    def _go_on(self) -> None:
        start = self.file.tell() if self.tag else 0
        # If-Range: a file that has changed on the server meanwhile is sent from its beginning.
        headers = {"Range": f"bytes={start}-", "If-Range": self.tag} if self.tag and start else {}
        with urlopen(Request(self.url, headers=headers), timeout=_TIMEOUT) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                start = 0
            self.tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            length = answer.headers.get("Content-Length")
            self.file.seek(start)
            self.file.truncate()
            shutil.copyfileobj(answer, self.file, _CHUNK)
        size = self.file.tell()
        if length is not None and size != start + int(length):
            raise OSError(f"it ended after {size} of {start + int(length)} bytes")
