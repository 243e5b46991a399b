"""What belongs together is drawn together."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from lidarssl.report.training_curves import curve_section, training_charts
from lidarssl.report.training_log import Curve, TrainingLog

CURVE = Curve([0, 10], [2.0, 1.0])
HELD_OUT = Curve([5, 9], [3.0, 2.0])
TERMS = {
    "loss": CURVE, "scan_finds_image": CURVE, "lr": CURVE,
    "val_recall@1_image_to_lidar": HELD_OUT, "val_recall@1_lidar_to_image": HELD_OUT,
    "val_recall@1_chance": HELD_OUT, "val_recall@10_chance": HELD_OUT,
    "val_median_rank_image_to_lidar": HELD_OUT, "val_uniformity_image": HELD_OUT,
    "val_uniformity_lidar": HELD_OUT, "val_alignment": HELD_OUT,
    "val_scan_finds_image": HELD_OUT, "val_loss": HELD_OUT,
}  # fmt: skip


def test_terms_of_held_out_frames_join_those_of_training() -> None:
    charts = training_charts(TrainingLog({"pretrain/clcp": TERMS, "probe": {"loss": CURVE}}))
    assert {(chart.stage, chart.term): list(chart.lines) for chart in charts} == {
        ("pretrain/clcp", "loss"): ["training", "held out"],
        ("pretrain/clcp", "scan_finds_image"): ["training", "held out"],
        ("pretrain/clcp", "lr"): ["training"],
        ("pretrain/clcp", "recall@1"): ["image finds scan", "scan finds image", "chance"],
        ("pretrain/clcp", "recall@10"): ["chance"],
        ("pretrain/clcp", "median_rank"): ["image finds scan"],
        ("pretrain/clcp", "uniformity"): ["images", "scans"],
        ("pretrain/clcp", "alignment"): ["held out"],
        ("probe", "loss"): ["training"],
    }
    assert charts[0].lines["held out"] is HELD_OUT


def section(terms: dict[str, Curve]) -> ElementTree.Element:
    return ElementTree.fromstring(f"<x>{''.join(curve_section(TrainingLog({'s': terms})))}</x>")


def test_losses_and_first_recall_are_shown_and_the_rest_is_folded() -> None:
    root = section(TERMS)
    shown, folded = root.find("div"), root.find("details")
    assert shown is not None
    assert folded is not None
    assert captions(shown) == ["s loss", "s recall@1"]
    assert captions(folded) == [
        "s scan_finds_image", "s lr", "s recall@10", "s median_rank", "s uniformity", "s alignment",
    ]  # fmt: skip
    assert (folded.findtext("summary") or "").endswith("(6)")


def captions(root: ElementTree.Element) -> list[str]:
    return ["".join(caption.itertext()) for caption in root.iter("figcaption")]


def test_legends_name_the_lines_in_their_colours() -> None:
    figures = {captions(figure)[0]: figure for figure in section(TERMS).iter("figure")}
    found = {
        name: {line.get("class"): "".join(line.itertext()) for line in figure.iter("li")}
        for name, figure in figures.items()
    }
    assert found["s loss"] == {"s0": "training", "s1": "held out"}
    assert found["s recall@1"] == {
        "s0": "image finds scan", "s1": "scan finds image", "random": "chance",
    }  # fmt: skip
    assert found["s alignment"] == {"s0": "held out"}
    assert found["s lr"] == {}
    groups = [group.get("class") for group in figures["s recall@1"].iter("g")]
    assert groups == ["s0", "s1", "random"]


def test_what_is_nowhere_finite_is_left_out() -> None:
    nothing = Curve([0, 1], [math.nan, math.inf])
    assert captions(section({"loss": CURVE, "val_alignment": nothing})) == ["s loss"]
    assert curve_section(TrainingLog({"s": {"loss": nothing}})) == []
    assert curve_section(TrainingLog()) == []
