"""What the scripts of `benchmarks/` share, and the table they end up in."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from conftest import REPOSITORY
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.sparse import layers
from lidarssl.sparse.tensor import SparseTensor

FOLDER = REPOSITORY / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by name, as the others do."""
    monkeypatch.syspath_prepend(FOLDER)
    kept = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - kept:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("bounds", "reached", "target"),
    [
        ({"at_most": 3.0}, True, "<= 3"),
        ({"at_most": 2.9}, False, "<= 2.9"),
        ({"at_least": 3.0}, True, ">= 3"),
        ({"at_least": 3.1}, False, ">= 3.1"),
        ({}, None, ""),
    ],
)
def test_a_figure_knows_whether_it_reaches_its_target(script, bounds, reached, target):
    figure = script("measuring").Figure("name", 3.0, "ms", **bounds)
    assert (figure.reached, figure.target) == (reached, target)


def test_forms_take_turns_and_the_warm_up_does_not_count(script, monkeypatch):
    measuring, calls, clock = script("measuring"), [], [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def form(name: str, seconds: list[float]) -> Any:
        def work() -> None:
            calls.append(name)
            clock[0] += seconds.pop(0)

        return work

    forms = {"a": form("a", [9, 1, 2, 6]), "b": form("b", [9, 3, 3, 3])}
    assert measuring.taking_turns(forms, 3) == {"a": 2000, "b": 3000}
    assert calls == list("ab" * 4)


def test_peak_memory_is_that_of_the_command_alone(script):
    measuring = script("measuring")
    held = np.ones(2**26)  # half a gibibyte of this process
    code = "import numpy; values = numpy.ones({}); print('said')"
    small = measuring.peak_memory([sys.executable, "-c", code.format(1)])
    printed, large = measuring.watched([sys.executable, "-c", code.format(2**25)])
    assert small < 0.2
    assert 0.24 < large - small < 0.3
    assert printed == "said"
    assert held.nbytes == 2**29


def test_numbers_have_three_digits(script):
    found = [script("measuring").number(value) for value in (0.0, 0.01234, 1.5, 99.96, 12345.6)]
    assert found == ["0.00", "0.0123", "1.50", "100.0", "12 346"]


@pytest.fixture
def reported(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """What a script with two figures writes, on a machine of known worth."""
    measuring = script("measuring")
    monkeypatch.setattr(measuring, "calibration", lambda: {"matmul_ms": 21.0, "sort_ms": 60.0})
    monkeypatch.setattr(measuring, "roofline", lambda threads: measuring.Roofline(300.0, 10.0))
    monkeypatch.setattr(sys, "argv", ["benchmarks/good.py", "--json", "there", "--repeats", "2"])
    figures = [
        measuring.Figure("first", 5.0, "ms", at_most=4, beside=9.0, limit="memory | cores"),
        measuring.Figure("second", 7.0, "GiB"),
    ]
    place = tmp_path / "reported.json"
    measuring.report("Good", figures, place, 2, cloud="made-up")
    said = capsys.readouterr().out
    assert all(word in said for word in ("Good, 2 threads", "cloud: made-up", "21.0 ms", "no"))
    return place


def test_a_report_says_how_it_was_made(reported):
    found = json.loads(reported.read_text())
    assert found["command"] == "python benchmarks/good.py --repeats 2"
    assert found["about"] == {"cloud": "made-up"}
    assert found["roofline"] == {"gflops": 300.0, "copy_gb_per_s": 10.0}
    assert [one["reached"] for one in found["figures"]] == [False, None]


@pytest.fixture
def runner(script: Any, reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run_all` over two scripts: one reports two figures, one breaks."""
    run_all = script("run_all")
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "SCRIPTS", (run_all.Script("bad"), run_all.Script("good")))
    place = "sys.argv[sys.argv.index('--json') + 1]"
    copying = f"import shutil, sys\nshutil.copy({str(reported)!r}, {place})"
    (tmp_path / "good.py").write_text(copying)
    (tmp_path / "bad.py").write_text("raise SystemExit('it broke')")
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--out", str(tmp_path / "out")])
    return run_all


def test_a_script_that_fails_stays_in_the_table_and_the_others_run(runner, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{runner.MARKS[0]}\nold\n{runner.MARKS[1]}\nafter\n")
    sys.argv += ["--page", str(page)]
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == 1
    assert "it broke" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith(f"before\n{runner.MARKS[0]}\n")
    assert text.endswith(f"{runner.MARKS[1]}\nafter\n")
    assert "old" not in text
    assert (
        "| first | 5.00 ms | 9.00 ms | <= 4 ms | **no** | memory / cores "
        "| `python benchmarks/good.py` |" in text
    )
    assert "| second | 7.00 GiB |  |  | `python benchmarks/good.py` |" in text
    assert "| bad | failed |  |  |  | it broke | `python benchmarks/bad.py` |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {8, 6}
    (bad, good) = json.loads((tmp_path / "out/table.json").read_text())
    assert bad["found"] is None
    assert good["found"]["figures"][0]["reached"] is False


def test_a_part_of_the_scripts_keeps_the_figures_of_the_others(runner, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runner.main()
    (tmp_path / "good.py").rename(tmp_path / "bad.py")
    sys.argv += ["--only", "bad"]
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == 0
    assert (tmp_path / "out/table.md").read_text().count("| first |") == 2


def test_a_page_without_marks_is_refused(runner, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{runner.MARKS[1]} {runner.MARKS[0]}")
    with pytest.raises(ValueError, match="does not have the lines"):
        runner.paste("text\n", page)


def test_scripts_that_are_run_exist_and_the_page_has_a_place_for_them(script):
    run_all = script("run_all")
    page = (REPOSITORY / "docs/performance.md").read_text("utf-8")
    for one in run_all.SCRIPTS:
        assert (FOLDER / f"{one.name}.py").is_file()
        assert f"`benchmarks/{one.name}.py`" in page
    assert page.index(run_all.MARKS[0]) < page.index(run_all.MARKS[1])


def test_deviation_from_a_line(script):
    scaling = script("scaling")

    def costs(seconds: dict[int, float]) -> Any:
        return {sweeps: scaling.Cost(value, 0, 0, 0) for sweeps, value in seconds.items()}

    assert scaling.deviation(costs({1: 3, 2: 5, 8: 17})) < 1e-9
    assert 0.1 < scaling.deviation(costs({1: 3, 2: 5, 4: 9, 8: 17, 16: 50})) < 0.5


def test_counts_agree_with_the_products_of_a_forward(script, monkeypatch):
    minkunet34 = script("minkunet34")
    points = 5 * torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    model, batch = minkunet34.network(), minkunet34.batch_of(points, 2)
    counts = script("counts")
    levels, flop, convolution = counts.work(model, batch), [], layers.convolution

    def counting(x, kernel, bias, connect):
        pairs = len(x.features)
        if connect is not None:
            _, listed = connect(x.maps, x.level)
            pairs = len(listed.in_row) + pairs * (listed.identity is not None)
        flop.append(2 * pairs * kernel.shape[-2] * kernel.shape[-1])
        return convolution(x, kernel, bias, connect)

    monkeypatch.setattr(layers, "convolution", counting)
    with torch.no_grad():
        model(batch)
    monkeypatch.undo()
    assert len(levels) == 5
    assert counts.useful_flops(model, batch) == sum(flop)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.endswith("kernel"))
    assert sum(one.weights for one in levels) == 4 * kernels


def test_the_network_of_spconv_computes_ours(script):
    pytest.importorskip("spconv")
    theirs = script("spconv_unet")
    torch.manual_seed(0)
    model = MinkUNet(
        stem_channels=8, encoder_channels=(8, 16, 16, 24), decoder_channels=(24, 16, 16, 8),
        blocks=(1,) * 8, head_channels=12,
    ).eval()  # fmt: skip
    sites = torch.unique(torch.randint(-20, 20, (400, 4)) * torch.tensor([0, 1, 1, 1]), dim=0)
    sites, values = theirs.shifted(sites), torch.rand(len(sites), 1)
    assert int(sites.min()) == 0
    with torch.no_grad():
        ours = model.forward_sparse(SparseTensor.of(sites, values)).features
        found = theirs.SpconvUNet(model).eval()(theirs.sparse_tensor(sites, values, 1)).features
    assert torch.allclose(found, ours, rtol=0, atol=1e-5)
