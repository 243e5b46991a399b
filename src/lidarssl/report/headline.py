"""The sentence at the top: what pretraining was worth, and no more than the seeds support."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lidarssl.report.schema import LOOK_UPS, RANDOM_INIT, Protocol
from lidarssl.report.scores import (
    Column,
    Evidence,
    ScoreTable,
    difference,
    evidence,
    percent,
    signed,
)


@dataclass(frozen=True)
class Headline:
    """What a reader takes away.

    Attributes:
        verdict: one short sentence.
        numbers: the scores behind it, with their protocol.
        remarks: what qualifies it, one sentence each.
        column: what the scores were compared within; None without scores.
    """

    verdict: str
    numbers: str
    remarks: tuple[str, ...]
    column: Column | None


def headline(table: ScoreTable) -> Headline:
    """The verdict on a run's scores.

    The linear probe with most labels decides, because it judges the features alone; fine-tuning
    follows as remarks.
    """
    column = _deciding_column(table)
    if column is None:
        return Headline(
            "Nothing has been evaluated yet.",
            "Judge the backbone with `lidarssl probe RECIPE --checkpoint RUN`.",
            (),
            None,
        )
    verdict = _verdict(table, column)
    remarks = [*_seed_remarks(table, column), *_other_columns(table, column)]
    return Headline(verdict, _numbers(table, column), tuple(remarks), column)


def _deciding_column(table: ScoreTable) -> Column | None:
    candidates = [column for column in table.columns if table.pretrained(column)]
    with_baseline = [c for c in candidates if table.score(RANDOM_INIT, c)]
    for columns in (with_baseline, candidates):
        probes = [column for column in columns if column.protocol is Protocol.PROBE]
        if probes:
            return probes[-1]
        if columns:
            return columns[0]
    return None


def _numbers(table: ScoreTable, column: Column) -> str:
    methods = [*table.pretrained(column), RANDOM_INIT, table.look_up]
    found = [(method, score) for method in methods if (score := table.score(method, column))]
    first_method, first = found[0]
    what = {
        Protocol.PROBE: "Linear probe of the frozen features",
        Protocol.FINETUNE: "Fine-tuning of all weights",
        Protocol.LOOKUP: "Look-up",
    }[column.protocol]
    rest = "".join(f"; {method} {score}" for method, score in found[1:])
    return f"{what}, {percent(column.fraction)} of the labels: {first_method} {first} mIoU{rest}."


def _verdict(table: ScoreTable, column: Column) -> str:
    random_init = table.score(RANDOM_INIT, column)
    if random_init is None:
        return "No verdict: there is no random-init baseline to compare with."
    outcomes = _evidence_by_method(table, column, RANDOM_INIT)
    kinds = set(outcomes.values())
    if kinds == {Evidence.NOT_BETTER}:
        return "Pretraining did not help."
    if kinds == {Evidence.UNSETTLED}:
        if _one_seed(table, column, outcomes):
            best = max(outcomes, key=lambda name: _mean(table, name, column))
            gain = difference(_mean(table, best, column), random_init.mean)
            helped = f"In this one run pretraining helped, by {gain:.1f} mIoU points"
            return helped + _against_look_up(table, column)
        return "Pretraining may have helped: the average is higher, the seeds do not settle it."
    if len(kinds) > 1:
        named = {kind: _names(m for m in outcomes if outcomes[m] is kind) for kind in kinds}
        parts = {
            Evidence.BETTER: "helped with {}",
            Evidence.UNSETTLED: "may have helped with {}",
            Evidence.NOT_BETTER: "did not help with {}",
        }
        said = [text.format(named[kind]) for kind, text in parts.items() if kind in named]
        return f"Pretraining {', '.join(said)}."
    if column.protocol is Protocol.PROBE and not _shown_by_finetuning(table):
        return "Pretraining helped a linear probe, but fine-tuning does not show it."
    return "Pretraining helped" + _against_look_up(table, column)


def _shown_by_finetuning(table: ScoreTable) -> bool:
    """Whether any method is better in any share of the labels; true where none was fine-tuned."""
    outcomes = [
        kind
        for column in table.columns
        if column.protocol is Protocol.FINETUNE
        for kind in _evidence_by_method(table, column, RANDOM_INIT).values()
    ]
    return not outcomes or Evidence.BETTER in outcomes


def _one_seed(table: ScoreTable, column: Column, methods: Iterable[str]) -> bool:
    """Whether no row has a second seed that could contradict the first."""
    scores = [table.score(method, column) for method in (*methods, RANDOM_INIT)]
    return all(score is not None and score.count == 1 for score in scores)


def _mean(table: ScoreTable, method: str, column: Column) -> float:
    score = table.score(method, column)
    return 0.0 if score is None else score.mean


def _against_look_up(table: ScoreTable, column: Column) -> str:
    outcomes = _evidence_by_method(table, column, table.look_up)
    beaten = [method for method, kind in outcomes.items() if kind is not Evidence.NOT_BETTER]
    if len(beaten) == len(outcomes):
        return "."
    if beaten:
        return f", but only {_names(beaten)} beat a table look-up."
    return f", but not past a table look-up on {LOOK_UPS[table.look_up]}."


def _evidence_by_method(table: ScoreTable, column: Column, baseline: str) -> dict[str, Evidence]:
    reference = table.score(baseline, column)
    if reference is None:
        return {}
    return {
        method: evidence(score, reference, deterministic_baseline=baseline in LOOK_UPS)
        for method in table.pretrained(column)
        if (score := table.score(method, column))
    }


def _seed_remarks(table: ScoreTable, column: Column) -> list[str]:
    methods = table.pretrained(column)
    scores = [score for method in methods if (score := table.score(method, column))]
    random_init = table.score(RANDOM_INIT, column)
    remarks = []
    networks = [*scores, *([random_init] if random_init else [])]
    if networks and all(score.count == 1 for score in networks):
        remarks.append("One seed per row: the noise between seeds is not known.")
    elif any(score.count == 1 for score in networks):
        remarks.append("One seed per row in places: the noise between seeds is not known there.")
    if len(scores) > 1 and max(s.low for s in scores) <= min(s.high for s in scores):
        remarks.append(
            "The order among the pretraining methods is within the spread of the seeds: "
            "no ranking is claimed."
        )
    if table.score(table.look_up, column) is None:
        remarks.append("No look-up baseline was run with this share of the labels.")
    failed = sum(s.failed for s in scores) + (random_init.failed if random_init else 0)
    if failed:
        remarks.append(f"{failed} of the seeds behind these numbers failed and are left out.")
    return remarks


def _other_columns(table: ScoreTable, deciding: Column) -> list[str]:
    """One remark per protocol: what the methods gain with the other shares of the labels."""
    gains: dict[Protocol, list[str]] = {}
    for column in table.columns:
        random_init = table.score(RANDOM_INIT, column)
        if column == deciding or random_init is None:
            continue
        outcomes = _evidence_by_method(table, column, RANDOM_INIT)
        parts = [
            f"{method} {signed(difference(score.mean, random_init.mean))}{_hedge(kind)}"
            for method, kind in outcomes.items()
            if (score := table.score(method, column))
        ]
        if parts:
            text = f"{percent(column.fraction)} of the labels: {', '.join(parts)}"
            gains.setdefault(column.protocol, []).append(text)
    names = {Protocol.PROBE: "Linear probe", Protocol.FINETUNE: "Fine-tuning"}
    return [
        f"{names[protocol]}, difference to {RANDOM_INIT} with {'; with '.join(texts)}."
        for protocol, texts in gains.items()
        if protocol in names
    ]


def _hedge(kind: Evidence) -> str:
    return " (within the noise)" if kind is Evidence.UNSETTLED else ""


def _names(methods: Iterable[str]) -> str:
    names = list(methods)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
