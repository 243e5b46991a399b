from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report.build import build_report
from lidarssl.report.schema import MIOU_NAN, RANDOM_INIT, ClassTableRow, Protocol

VOID = {"img", "br", "meta", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags nest and collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def values(self, tag: str, attribute: str) -> list[str]:
        return [v for t, name, v in self.attributes if (t, name) == (tag, attribute)]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def text_of(page: Page) -> str:
    return " ".join("".join(page.text).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def built(complete_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("built") / "demo"
    shutil.copytree(complete_run, run)
    assert build_report(run) == run / "report.html"
    return run


@pytest.fixture(scope="module")
def html(built: Path) -> str:
    return (built / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_small_and_asks_nothing_of_a_network(html: str) -> None:
    page = parse(html)
    assert len(html) < 8 * 1024**2
    without_pictures = re.sub(r"base64,[^\"]+", "", html).lower()
    assert not re.search(r"https?:|//[a-z]|@import|<script|<iframe|<object", without_pictures)
    assert all(source.startswith("data:image/webp;base64,") for source in page.values("img", "src"))
    assert all(href.startswith(("#", "data:")) for _, n, href in page.attributes if n == "href")
    assert not re.search(r"url\(", html)
    assert "default-src 'none'" in page.values("meta", "content")[0]


def test_every_link_has_its_target(html: str) -> None:
    page = parse(html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = page.values("a", "href")
    assert len(links) == 5
    assert [link.removeprefix("#") for link in links] == ids


def test_the_page_says_what_a_reader_needs(html: str) -> None:
    text = text_of(parse(html))
    for sentence in (
        "Image-to-lidar pretraining on a synthetic town",
        "Pretraining helped.",
        "SLidR 26.9 ± 1.2 mIoU",
        "random init 10.3 ± 1.0",
        "look-up 21.5",
        "mIoU ('nan' variant",
        "40 held-out frames of 40 scenes",
        "batch-norm statistics",
        "height, range and intensity",
        "lidarssl evaluate runs/demo --protocol probe",
        "lidarssl demo --method slidr --seeds 3 --out runs/demo",
        "voxel_size: 0.2 # m",
        "torch2.10.0",
        "The world is synthetic",
        "4 March 2025, 10:20",
        "4 min 43 s",
        "no ranking is claimed",
        "vegetation",
        "pretrain/slidr loss",
        "Like this car",
    ):
        assert sentence in text, sentence
    assert "Not in this report" not in text


def test_every_picture_has_a_caption_and_a_text_for_the_blind(html: str) -> None:
    page = parse(html)
    alts = page.values("img", "alt")
    assert len(alts) == 34
    assert all(alts)
    assert text_of(page).count("What to look for in") == 16
    assert html.count("<svg") == html.count('role="img"') == len(page.values("svg", "aria-label"))


def test_embedded_pictures_decode_and_are_not_blank(html: str) -> None:
    import base64

    for data in re.findall(r"data:image/webp;base64,([^\"]+)", html):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert np.asarray(image.convert("RGB"), float).std() > 5


def test_pictures_are_also_left_as_png_and_numbers_as_json(built: Path) -> None:
    names = {path.name for path in (built / "figures").glob("*.png")}
    assert "4_feature_pca.png" in names
    assert {f"7_bev_prediction_{index}.png" for index in range(3)} <= names
    summary = json.loads((built / "report.json").read_text())
    assert summary["verdict"] == "Pretraining helped."
    assert summary["problems"] == []
    probe = [s for s in summary["scores"] if (s["protocol"], s["fraction"]) == ("probe", 0.5)]
    assert [score["method"] for score in probe] == ["SLidR", "PPKT", "random init", "look-up"]
    assert probe[0]["miou"] == pytest.approx(26.9)
    assert probe[3]["spread"] is None


def test_the_report_is_a_function_of_the_run_folder(built: Path, html: str) -> None:
    assert build_report(built).read_text(encoding="utf-8") == html
    assert not list(built.rglob("*.part"))


def test_an_empty_run_makes_a_page_that_says_so(tmp_path: Path) -> None:
    text = text_of(parse(build_report(tmp_path).read_text(encoding="utf-8")))
    assert "Nothing has been evaluated yet." in text
    for name in ("run.json", "results.json", "metrics.jsonl"):
        assert f"{name}: file not found" in text
    with pytest.raises(DataError):
        build_report(tmp_path / "none")


@pytest.mark.parametrize("name", ["run.json", "results.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1, 2]", b'{"a": NaN}'])
def test_a_malformed_file_is_named_and_the_rest_shown(
    make_run: Callable[..., Path], name: str, content: bytes
) -> None:
    run = make_run()
    (run / name).write_bytes(content)
    text = text_of(parse(build_report(run).read_text(encoding="utf-8")))
    if not (name == "metrics.jsonl" and content == b""):
        assert f"{name}:" in text
    assert ("Pretraining helped." in text) == (name != "results.json")


def test_hostile_text_is_shown_as_text(make_run: Callable[..., Path]) -> None:
    run = make_run()
    values = json.loads((run / "run.json").read_text())
    attack = "</title><script>alert(1)</script>\"'\x00\ud800"
    for key in ("title", "command", "recipe", "device", "created", "version"):
        values[key] = attack
    values["notes"] = [attack]
    values["versions"] = {attack: attack}
    values["stages"] = [{"name": attack, "seconds": 1e300, "description": attack}]
    (run / "run.json").write_text(json.dumps(values))
    line = {"stage": attack, "step": 1, "loss": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(line))
    html = build_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert text_of(parse(html)).count("alert(1)") >= 8


def test_a_diverged_run_says_so(make_run: Callable[..., Path]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain/slidr", "step": 400, "loss": NaN}\n')
    html = build_report(run).read_text(encoding="utf-8")
    assert "pretrain/slidr: loss is not a finite number at step 400" in html


def test_the_scores_say_where_rows_average_over_different_classes(
    make_run: Callable[..., Path],
) -> None:
    def page_of(iou: tuple[float | None, ...], metric: str = MIOU_NAN) -> str:
        ours = ClassTableRow("SLidR", Protocol.PROBE, 0.5, ("car", "bus"), (0.3, None), (9, 0))
        rows = (ours, replace(ours, method=RANDOM_INIT, iou=iou))
        page = build_report(make_run(classes=rows, metric=metric))
        return text_of(parse(page.read_text(encoding="utf-8")))

    warning = "SLidR 1, random init 2 (only some rows count bus)"
    assert warning in page_of((0.2, 0.0))
    assert "same classes" not in page_of((0.2, None))
    assert "same classes" not in page_of((0.2, 0.0), "mIoU over all classes")
