"""Ranges of files on a disk, behind a web server and in an object store; whatever goes wrong."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from lidarssl.datasets import byte_ranges
from lidarssl.datasets.byte_ranges import HttpStore, LocalStore, ObjectStore, Store, open_store
from lidarssl.errors import ConfigError, DataError
from shard_dataset_files import Server, serving

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a b.tar").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(byte_ranges, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (folder / "a%20b.tar").symlink_to(folder / "a b.tar")  # the server does not unquote
    with serving(folder) as state:
        yield state


def stores(folder: Path, server: Server) -> list[Store]:
    return [LocalStore(folder), HttpStore(server.url), HttpStore(f"{server.url}/")]


def test_ranges_and_whole_files(folder: Path, server: Server) -> None:
    for store in stores(folder, server):
        for offset, size in ((0, 1), (0, len(CONTENT)), (511, 1025), (len(CONTENT) - 1, 1)):
            found = store.read_range("a b.tar", offset, size)
            assert found == CONTENT[offset : offset + size]
        assert store.read("a b.tar", len(CONTENT)) == CONTENT
        assert pickle.loads(pickle.dumps(store)).read("a b.tar", 5000) == CONTENT


def test_what_is_not_there_or_too_short_or_too_large(folder: Path, server: Server) -> None:
    for store in stores(folder, server):
        for offset, size in ((len(CONTENT) - 4, 5), (len(CONTENT), 1), (1 << 40, 512)):
            with pytest.raises(DataError, match=r"(?s)a(%20| )b\.tar.*is cut, or not the one"):
                store.read_range("a b.tar", offset, size)
        with pytest.raises(DataError, match="more than 2047 bytes"):
            store.read("a b.tar", len(CONTENT) - 1)
        with pytest.raises(DataError, match=r"(?s)no\.tar.*remedy"):
            store.read("no.tar", 9)
        with pytest.raises(DataError, match=r"(?s)no\.tar.*remedy"):
            store.read_range("no.tar", 0, 9)


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "x.tar").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        LocalStore(folder).read_range("x.tar", 0, 1)


def test_passing_failures_are_tried_again(server: Server) -> None:
    store = HttpStore(server.url)
    server.failures, server.cut = [503, 429], []
    assert store.read_range("a b.tar", 5, 9) == CONTENT[5:14]
    assert len(server.requests) == 3
    server.cut = [4, 0]
    assert store.read_range("a b.tar", 5, 9) == CONTENT[5:14]
    server.cut = [100]
    assert store.read("a b.tar", 9999) == CONTENT


def test_lasting_failures_end_in_an_error_that_names_the_file(server: Server) -> None:
    store = HttpStore(server.url)
    server.failures = [503] * 3
    with pytest.raises(DataError, match=r"a%20b\.tar: the server answers 503"):
        store.read_range("a b.tar", 5, 9)
    assert len(server.requests) == 3
    server.cut = [4] * 3
    with pytest.raises(DataError, match="cannot be fetched"):
        store.read_range("a b.tar", 5, 9)
    server.requests.clear()
    for status, remedy in ((403, "rights of the bucket"), (401, "rclone"), (404, "uploaded")):
        server.failures = [status]
        with pytest.raises(DataError, match=rf"(?s)answers {status}.*{remedy}"):
            store.read_range("a b.tar", 5, 9)
    assert len(server.requests) == 3, "these are not tried again"


def test_a_server_that_is_not_there_is_tried_once_for_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(byte_ranges.time, "sleep", paused.append)
    with serving(tmp_path) as state:
        url = state.url
    with pytest.raises(DataError, match="cannot be fetched"):
        HttpStore(url).read("x", 9)
    assert paused == []
    with pytest.raises(DataError, match="cannot be fetched"):
        HttpStore(url).read_range("x", 0, 9)
    assert paused == list(byte_ranges.PAUSES), "it may come back while a run trains"


def test_a_server_without_ranges_is_refused_before_its_whole_file_is_read(server: Server) -> None:
    server.ranges = False
    with pytest.raises(ConfigError, match=r"(?s)ignores range requests.*copy it to a disk"):
        HttpStore(server.url).read_range("a b.tar", 5, 9)
    assert len(server.requests) == 1, "another try would do no better"


def test_a_redirection_never_leads_to_a_file_of_this_machine(server: Server, folder: Path) -> None:
    for target in (f"file://{folder}/a%20b.tar", "ftp://127.0.0.1/x"):
        server.redirect = target
        with pytest.raises(DataError, match="x"):
            HttpStore(server.url).read("x", 9999)


def test_a_query_is_sent_but_never_told(server: Server) -> None:
    store = HttpStore(f"{server.url}/?sig=SECRET")
    assert store.read_range("a b.tar", 0, 4) == CONTENT[:4]
    assert server.requests[-1] == ("/a%20b.tar?sig=SECRET", "bytes=0-3")
    server.failures = [403]
    with pytest.raises(DataError) as caught:
        store.read("a b.tar", 4)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "problem"),
    [
        ("ftp://host/x", "read by nothing"),
        ("file:///etc", "read by nothing"),
        ("https://", "not an http"),
        ("http://host:port/x", "not an http"),
        ("http://host/a b", "not an http"),
        ("https://me:secret@host/x", "password"),
    ],
)
def test_addresses_that_are_refused(root: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(root)
    assert "secret" not in str(caught.value)


def test_object_stores_through_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fsspec's store in memory in place of a bucket."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setitem(byte_ranges.OBJECT_STORES, "memory", "fsspec")
    fsspec.filesystem("memory").pipe_file("/bucket/x.tar", CONTENT)
    store = open_store("memory://bucket/")
    assert isinstance(store, ObjectStore)
    assert store.read("x.tar", len(CONTENT)) == CONTENT
    assert store.read_range("x.tar", 511, 1025) == CONTENT[511:1536]
    with pytest.raises(DataError, match="more than 9 bytes"):
        store.read("x.tar", 9)
    with pytest.raises(DataError, match=r"memory://bucket/x\.tar: ends before byte 2049"):
        store.read_range("x.tar", len(CONTENT) - 4, 5)
    with pytest.raises(DataError, match=r"memory://bucket/no\.tar"):
        store.read("no.tar", 9)


def test_the_package_of_an_object_store_is_named() -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install s3fs"):
            open_store("s3://bucket/x").read("index.json", 9)
    else:
        pytest.skip("s3fs is installed")
