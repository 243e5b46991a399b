"""Everything a run folder holds, read leniently: what cannot be read becomes a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lidarssl.errors import DataError
from lidarssl.report import figures
from lidarssl.report.figures import Drawing, Key, Panel
from lidarssl.report.retrieval import RETRIEVAL_FILE, RetrievalRecord
from lidarssl.report.schema import METRICS_FILE, PictureRecord, Results, RunRecord
from lidarssl.report.shift import SHIFT_FILE, ShiftResults
from lidarssl.report.training_log import TrainingLog, read_log

MAX_PNG_BYTES = 32 * 1024**2
_T = TypeVar("_T")


@dataclass
class RunFolder:
    """What a report shows.

    Attributes:
        path: the folder.
        record, results: None when missing or malformed.
        log: empty when missing.
        retrieval: None where the run has none.
        drawings: pictures that could be drawn, in the order of the results.
        shift: scores under other conditions; None when there are none.
        shift_drawings: pictures of these.
        problems: what is missing or malformed, one sentence each.
    """

    path: Path
    record: RunRecord | None = None
    results: Results | None = None
    log: TrainingLog = field(default_factory=TrainingLog)
    retrieval: RetrievalRecord | None = None
    drawings: list[tuple[PictureRecord, Drawing]] = field(default_factory=list)
    shift: ShiftResults | None = None
    shift_drawings: list[tuple[PictureRecord, Drawing]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.record.name if self.record else self.path.resolve().name


def read_run(path: Path, pictures: bool = True) -> RunFolder:
    """Read a run folder.

    Args:
        pictures: draw the pictures too.

    Raises:
        DataError: ``path`` is not a folder.
    """
    if not path.is_dir():
        raise DataError(
            "no such run folder", path=path, remedy="give a folder that a run has written"
        )
    run = RunFolder(path)
    run.record = _attempt(run, lambda: RunRecord.load(path))
    run.results = _attempt(run, lambda: Results.load(path))
    # A probe on cached features trains nothing that would be logged.
    untrained = run.results is not None and not (path / METRICS_FILE).exists()
    log = None if untrained else _attempt(run, lambda: read_log(path / METRICS_FILE))
    if log is not None:
        run.log = log
        run.problems += [f"{METRICS_FILE}: {problem}" for problem in log.problems]
    if (path / RETRIEVAL_FILE).exists():
        run.retrieval = _attempt(run, lambda: RetrievalRecord.load(path))
    if (path / SHIFT_FILE).exists():
        run.shift = _attempt(run, lambda: ShiftResults.load(path))
    if pictures and run.results is not None:
        run.drawings = _drawn(run, run.results.pictures)
    if pictures and run.shift is not None:
        run.shift_drawings = _drawn(run, run.shift.pictures)
    return run


def _drawn(run: RunFolder, records: Sequence[PictureRecord]) -> list[tuple[PictureRecord, Drawing]]:
    drawings = []
    for record in records:
        drawing = _attempt(run, lambda record=record: _draw(run.path, record))  # type: ignore[misc]
        if drawing is not None:
            drawings.append((record, drawing))
    return drawings


def describe(error: DataError, root: Path) -> str:
    """An error as one sentence, with its path relative to ``root``."""
    place = "" if error.path is None else Path(error.path).name
    if error.path is not None and Path(error.path).is_relative_to(root):
        place = Path(error.path).relative_to(root).as_posix()
    parts = [place, error.field and f"field {error.field}", error.problem]
    sentence = ": ".join(part for part in parts if part)
    return f"{sentence} ({error.remedy})" if error.remedy else sentence


def _attempt(run: RunFolder, read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except DataError as error:
        run.problems.append(describe(error, run.path))
        return None


def _draw(root: Path, record: PictureRecord) -> Drawing:
    path = root / record.file
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError("leads out of the run folder", path=path)
    if path.suffix == ".npz":
        return figures.draw(path)
    return Drawing((Panel("", _read_png(path)),), Key())


def _read_png(path: Path) -> bytes:
    from PIL import Image

    try:
        if path.stat().st_size > MAX_PNG_BYTES:
            raise DataError(f"larger than {MAX_PNG_BYTES >> 20} MiB", path=path)
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("file not found", path=path) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable PNG ({error})", path=path) from error
