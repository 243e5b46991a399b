"""Parts of files in a folder, behind an HTTP server or in an object store: bounded and checked.

A store is told a name and a range, and returns these bytes or raises ``DataError``. It holds no
open file and no connection, so that it travels to worker processes.
"""

from __future__ import annotations

import http.client
import re
import socket
import stat
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from dataclasses import dataclass
from email.message import Message
from io import BufferedReader
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from lidarssl.errors import ConfigError, DataError

TIMEOUT = 30.0
"""s without a byte after which a request counts as failed."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""s before each new try of a request that failed."""
OBJECT_STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Schemes that fsspec reads, and the package that each needs."""
_PART = 1 << 20
_PASSING = (408, 429, 500, 502, 503, 504)
_SHORTER = (
    "the file is cut, or not the one that its index was packed with: copy or upload the tar files "
    "and tables of one packing again"
)
_MISSING = (
    "copy every shard and index here; or, where packing was interrupted or a file deleted, run the "
    "same `lidarssl data shard` once more"
)
_REMEDIES = {
    401: "the server asks who you are: serve the bucket to this machine, e.g. with `rclone serve`",
    403: "you may not read it: check the rights of the bucket, or whether the link has expired",
    404: "check root, and that every shard and index was uploaded",
    416: _SHORTER,
}


class Store(ABC):
    """Files under one root."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    @abstractmethod
    def read(self, name: str, limit: int, remedy: str | None = None) -> bytes:
        """All of a file of at most ``limit`` bytes.

        Raises:
            DataError: it is missing, cannot be read, or is larger.
        """

    @abstractmethod
    def read_range(self, name: str, offset: int, size: int) -> bytearray:
        """Exactly ``size`` bytes from ``offset`` on, which the caller may keep and change.

        Raises:
            ConfigError: the store cannot read ranges.
            DataError: the file is missing, cannot be read, or ends before.
        """

    def _ended(self, name: str, end: int) -> DataError:
        return DataError(
            f"ends before byte {end}", path=self.where(name), field="shard", remedy=_SHORTER
        )

    def _too_large(self, name: str, limit: int) -> DataError:
        return DataError(
            f"has more than {limit} bytes, which is all that is read",
            path=self.where(name),
            remedy="check that this is the file it claims to be",
        )


def open_store(root: str | Path) -> Store:
    """The store behind a folder, an ``http(s)://`` URL, or an ``s3://``, ``gs://``, ... one.

    Raises:
        ConfigError: a URL that cannot be read.
    """
    scheme, colon, _ = str(root).partition("://")
    if not colon:
        return LocalStore(Path(root))
    if scheme in ("http", "https"):
        return HttpStore(str(root))
    if scheme in OBJECT_STORES:
        return ObjectStore(str(root))
    raise ConfigError(
        f"'{scheme}://' is read by nothing here",
        field="root",
        remedy=f"give a folder, http:// or https://, or {', '.join(OBJECT_STORES)}",
    )


@dataclass(frozen=True)
class LocalStore(Store):
    """A folder."""

    root: Path

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str, limit: int, remedy: str | None = None) -> bytes:
        with self._open(name, remedy) as (file, size):
            if size > limit:
                raise self._too_large(name, limit)
            return file.read(limit)

    def read_range(self, name: str, offset: int, size: int) -> bytearray:
        with self._open(name) as (file, there):
            if offset + size > there:
                raise self._ended(name, offset + size)
            file.seek(offset)
            data = bytearray(size)
            found = file.readinto(data)
        if found != size:
            raise self._ended(name, offset + size)
        return data

    def _open(self, name: str, remedy: str | None = None) -> _Opened:
        return _Opened(self.root / name, remedy)


class _Opened:
    """A regular file and its size; whatever fails is a ``DataError``."""

    def __init__(self, path: Path, remedy: str | None) -> None:
        self.path, self.remedy = path, remedy

    def __enter__(self) -> tuple[BufferedReader, int]:
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError("is not a regular file", path=self.path, remedy=self.remedy)
            self.file = self.path.open("rb")
        except FileNotFoundError as error:
            remedy = self.remedy or _MISSING
            raise DataError("file not found", path=self.path, remedy=remedy) from error
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return self.file, status.st_size

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"cannot be read ({error})", path=self.path)


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from an encrypted address to one in the clear."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener() -> urllib.request.OpenerDirector:
    """For http and https alone: a redirection must not lead to a file of this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _SameScheme(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class HttpStore(Store):
    """Files behind a web server that answers requests for a range of bytes.

    Args:
        root: URL of the folder; a query (``?sig=...``) is sent with every request, and left out
            of every message.

    Raises:
        ConfigError: not such a URL, or one that holds a password.
    """

    def __init__(self, root: str) -> None:
        try:
            self._parts = urlsplit(root)
            named = bool(self._parts.hostname) and self._parts.port != 0
        except ValueError:
            named = False
        if not named or re.search(r"[\s\x00-\x1f]", root):
            raise ConfigError(
                "is not an http or https URL",
                field="root",
                remedy="e.g. https://HOST/BUCKET/SHARDS",
            )
        if self._parts.username is not None:
            raise ConfigError(
                "a URL with a password would be written into the run folder",
                field="root",
                remedy="serve the bucket to this machine, e.g. with `rclone serve http`",
            )

    def where(self, name: str) -> str:
        return self._url(name, "")

    def _url(self, name: str, query: str) -> str:
        parts = self._parts
        path = f"{parts.path.rstrip('/')}/{quote(name)}"
        return urlunsplit((parts.scheme, parts.netloc, path, query, ""))

    def read(self, name: str, limit: int, remedy: str | None = None) -> bytes:
        data = self._fetch(name, {}, limit + 1)
        if len(data) > limit:
            raise self._too_large(name, limit)
        return bytes(data)

    def read_range(self, name: str, offset: int, size: int) -> bytearray:
        return self._fetch(name, {"Range": f"bytes={offset}-{offset + size - 1}"}, size)

    def _fetch(self, name: str, headers: dict[str, str], most: int) -> bytearray:
        url = self._url(name, self._parts.query)
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})
        for pause in (*PAUSES, None):
            try:
                with _opener().open(request, timeout=TIMEOUT) as response:
                    self._check_range(name, request.get_header("Range"), response)
                    return _read_body(response, most, exactly="Range" in headers)
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"the server answers {error.code} {str(error.reason)[:100]}"
                failure = self._failed(name, problem, _REMEDIES.get(error.code))
                if error.code not in _PASSING:
                    raise failure from None
            except (OSError, http.client.HTTPException) as error:
                failure = self._failed(name, f"cannot be fetched ({str(error)[:200]})")
                # Of a table, which is read when a dataset is opened: nothing is lost by then.
                if "Range" not in headers and _is_nobody(error):
                    raise failure from None
            if pause is not None:
                time.sleep(pause)
        raise failure

    def _check_range(self, name: str, asked: str | None, response: Any) -> None:
        if asked is None:
            return
        told = str(response.headers.get("Content-Range", ""))
        if response.status == 200:
            # Of the server, not of the file: no other try or frame would do better.
            raise ConfigError(
                "the server ignores range requests: asked for a part of a file, it sends all of it",
                path=self.where(name),
                field="root",
                remedy="serve the folder with an object store, nginx or `rclone serve http`, which "
                "answer them (`python -m http.server` does not), or copy it to a disk",
            )
        end, whole = int(asked.rpartition("-")[2]) + 1, told.rpartition("/")[2]
        if whole.isdecimal() and int(whole) < end:
            raise self._ended(name, end)
        if response.status != 206 or not told.startswith(f"{asked.replace('=', ' ')}/"):
            raise self._failed(
                name,
                f"asked for {asked}, the server sends status {response.status} and '{told[:60]}'",
                "check root; another server or cache stands between it and the bucket",
            )

    def _failed(self, name: str, problem: str, remedy: str | None = None) -> DataError:
        remedy = remedy or "check root and the connection"
        return DataError(problem, path=self.where(name), field="root", remedy=remedy)


def _is_nobody(error: Exception) -> bool:
    """Whether nothing answers at an address: it refuses connections, or has no such name."""
    reason = getattr(error, "reason", error)
    unknown = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    return unknown or isinstance(reason, ConnectionRefusedError)


def _read_body(response: Any, most: int, exactly: bool) -> bytearray:
    """At most ``most`` bytes of an answer.

    Raises:
        http.client.IncompleteRead: it ends before what it, or ``exactly``, announced.
    """
    data = bytearray()
    while len(data) < most and (part := response.read(min(most - len(data), _PART))):
        data += part
    announced = response.headers.get("Content-Length")
    whole = int(announced) if announced is not None and announced.isdecimal() else 0
    if len(data) < min(most, whole) or (exactly and len(data) < most):
        raise http.client.IncompleteRead(b"", most - len(data))
    return data


class ObjectStore(Store):
    """A bucket, read through fsspec and its package for that kind; credentials are theirs.

    Args:
        root: e.g. ``s3://BUCKET/SHARDS``.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str, limit: int, remedy: str | None = None) -> bytes:
        data = self._fetch(name, 0, limit + 1)
        if len(data) > limit:
            raise self._too_large(name, limit)
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytearray:
        data = self._fetch(name, offset, size)
        if len(data) != size:
            raise self._ended(name, offset + size)
        return bytearray(data)

    def _fetch(self, name: str, offset: int, size: int) -> bytes:
        try:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self.where(name))
            found: bytes = system.cat_file(path, start=offset, end=offset + size)
            return found
        except ImportError as error:
            package = OBJECT_STORES.get(self.root.partition("://")[0], "")
            raise ConfigError(
                f"this kind of store needs a package ({str(error)[:200]})",
                field="root",
                remedy=f"pip install {package}",
            ) from error
        # Every store has errors of its own.
        except Exception as error:
            raise DataError(
                f"cannot be fetched ({str(error)[:200] or type(error).__name__})",
                path=self.where(name),
                field="root",
                remedy="check root, your credentials, and that every file was uploaded",
            ) from error
