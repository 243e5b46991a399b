"""The verb `calibrate`: its arguments, and what it does."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from lidarssl.cli.groups import Verbs, add_quiet
from lidarssl.cli.parser import at_least

NOTE = """\
Displaces the scan of every frame, asks the network which points the camera sees and at which
pixels, and finds the pose that explains it. Compares it with the calibration of the dataset, prints
the errors, and writes report.html with overlays, calibration.json, and the pictures.
Frames are held-out ones of the run's dataset. Every key of its recipe can be given too, which
calibrates frames of another dataset: --dataset.class_path NAME --dataset.root DIR --split SPLIT.

solvers:
  search  heading, x and y, up to --reach-angle and --reach-shift from the initial pose; height and
          tilt are taken to be right, as they are where scans are displaced in the plane. No match
          is chosen: all points are judged by how well they fit where a pose puts them
  robust  all six unknowns, from all points that the camera is said to see; wrong matches are
          left out
  planar  the same for heading, x and y alone
  epnp    as published: one EPnP of 128 points of high overlap, without leaving any out"""


def add_calibrate(top: Verbs) -> None:
    """`lidarssl calibrate`."""
    parser = top.open(
        "calibrate", "find the pose between a lidar and its cameras with a trained NCLR", calibrate,
        "lidarssl calibrate runs/nclr\n"
        "lidarssl calibrate runs/nclr --frames 100 --rig\n"
        "lidarssl calibrate runs/nclr --angle 10 --shift 1 0.5 --joint\n"
        "lidarssl calibrate runs/nclr --angle 0 --dataset.class_path Folder --dataset.root logs "
        "--split train",
        NOTE,
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="run folder of `lidarssl pretrain`, method Nclr")
    parser.add_argument("--split", help="of the dataset (default: the recipe's val_split)")
    parser.add_argument(
        "--frames", type=at_least(1), default=20, metavar="N",
        help="so many, evenly spread over the split (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--angle", type=finite, metavar="DEG",
        help="turn every scan by so much about z (default: drawn for every frame as in training); "
        "0 takes the dataset's calibration as the initial pose",
    )  # fmt: skip
    parser.add_argument(
        "--shift", type=finite, nargs=2, metavar=("X", "Y"), help="move every scan by so many m"
    )
    parser.add_argument(
        "--max-angle", type=finite, metavar="DEG", help="draw angles up to this one only"
    )
    parser.add_argument(
        "--spread", type=finite, metavar="M", help="standard deviation of the drawn moves"
    )
    parser.add_argument(
        "--solver", choices=("search", "robust", "planar", "epnp"), default="search",
        help="see below (default: search)",
    )  # fmt: skip
    parser.add_argument(
        "--reach-angle", type=positive, metavar="DEG",
        help="of search (default: as far as training turns a scan)",
    )  # fmt: skip
    parser.add_argument(
        "--reach-shift", type=positive, metavar="M",
        help="of search, along x and y (default: as far as training moves a scan)",
    )  # fmt: skip
    parser.add_argument(
        "--rig", action="store_true",
        help="search one motion for all cameras of a frame, which keep their places to each other",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=positive, metavar="CELLS",
        help="a match is wrong that is further off; a cell is --method.view.stride pixels of the "
        "network's image (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=probability, metavar="P",
        help="least probability that the camera sees a point (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--joint", action="store_true",
        help="also one pose of each camera from all frames: give frames of one vehicle",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="of all draws (default: 0)")
    parser.add_argument("--output", type=Path, help="folder (default: calibration in RUN)")
    add_quiet(parser)


def calibrate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.calibration import CalibrationOptions, InitialPose, calibrate_run
    from lidarssl.experiments.calibration_solving import SolverSettings
    from lidarssl.report.calibration_page import as_text

    _refuse_unused(arguments)
    names = ("threshold", "overlap", "reach_angle", "reach_shift")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    options = CalibrationOptions(
        arguments.split,
        arguments.frames,
        InitialPose(
            arguments.angle,
            None if arguments.shift is None else tuple(arguments.shift),
            arguments.max_angle,
            arguments.spread,
        ),
        SolverSettings(arguments.solver, **given),
        arguments.joint,
        arguments.rig,
        arguments.seed,
    )
    output = arguments.output or arguments.run / "calibration"
    record = calibrate_run(
        arguments.run, options, rest, output, not arguments.quiet, arguments.command
    )
    print(f"{as_text(record)}\n\nreport: {output / 'report.html'}")


def _refuse_unused(arguments: argparse.Namespace) -> None:
    """An option that the solver does not look at would silently change nothing.

    Raises:
        ConfigError: one is given.
    """
    from lidarssl.errors import ConfigError

    unused = {
        "search": ("threshold", "overlap"),
        "epnp": ("overlap", "reach_angle", "reach_shift"),
    }.get(arguments.solver, ("reach_angle", "reach_shift"))
    for name in unused:
        if getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"the solver {arguments.solver} does not use {flag}",
                field=flag,
                remedy="leave it out, or choose another --solver",
            )


def finite(text: str) -> float:
    """The type of a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def positive(text: str) -> float:
    """The type of a finite number above 0."""
    if (value := finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


def probability(text: str) -> float:
    """The type of a number from 0 to 1."""
    if not 0 <= (value := finite(text)) <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not from 0 to 1")
    return value
