from __future__ import annotations

from pathlib import Path

import pytest

from lidarssl.replacing import replacing


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path, durable) as first, replacing(path, durable) as second:
        first.write_text("half")
        second.write_text("other")
        assert path.read_text() == "old"
        assert all(name.name.startswith(".") for name in (first, second))
        first.write_text("new")
    assert path.read_text() == "new"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise error

    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        fail(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert list(tmp_path.iterdir()) == []
