"""The log of a run on disk: ``metrics.jsonl`` for programs, a CSV table per stage for people."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 64 * 1024


class RunLog:
    """Rows {"stage", "step", "epoch", name: value}, one per logged step of a stage.

    Args:
        run: folder that receives ``metrics.jsonl`` and ``logs/<stage>/metrics.csv``.
        stage: of every row added.
        steps_per_epoch: optimiser steps of one pass over the frames.
        append: keep what other stages wrote.
    """

    def __init__(self, run: Path, stage: str, steps_per_epoch: int, append: bool) -> None:
        self.path, self.stage, self.append = run / "metrics.jsonl", stage, append
        self.steps_per_epoch = steps_per_epoch
        self.table = CsvTable(stage_folder(run, stage) / "metrics.csv")

    def open(self, step: int) -> None:
        """Forget rows of this stage from ``step`` on: they will be written (again)."""
        kept = list(_rows(self.path)) if step or self.append else []
        kept = [row for row in kept if row["stage"] != self.stage or row["step"] < step]
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.path)
        self.table.replace([_cells(row) for row in kept if row["stage"] == self.stage])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step; a value that is not finite becomes null."""
        row: dict[str, Any] = {"stage": self.stage, "step": step}
        row["epoch"] = step // self.steps_per_epoch
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.table.add(_cells(row))


class CsvTable:
    """A CSV file with a column for every name that some row has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []

    def replace(self, rows: list[dict[str, Any]]) -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if rows:
                writer.writeheader()
                writer.writerows(rows)

    def add(self, row: dict[str, Any]) -> None:
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        with self.path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        self.replace([*rows, row])


def stage_folder(run: Path, stage: str) -> Path:
    """Where the tables and curves of a stage are."""
    return run / "logs" / stage.replace("/", "_")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log; what a killed run left half written is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int) and "stage" in row:
                yield row


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "stage"}
