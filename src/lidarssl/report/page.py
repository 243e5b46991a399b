"""The report of one run as a page: sections in reading order, from verdict to fine print."""

from __future__ import annotations

from datetime import datetime
from importlib import resources

from lidarssl.report import charts, tables
from lidarssl.report.embed import PictureBudget, ramp_css
from lidarssl.report.figures import Drawing, Key
from lidarssl.report.headline import Headline, headline
from lidarssl.report.markup import Html, element, join
from lidarssl.report.retrieval import retrieval_content
from lidarssl.report.run_folder import RunFolder
from lidarssl.report.schema import (
    LOOK_UP,
    LOOK_UPS,
    MIOU_NAN,
    PIXEL_POSITION,
    RANDOM_INIT,
    ClassTableRow,
    PictureRecord,
    Protocol,
    Results,
    RunRecord,
    Section,
)
from lidarssl.report.scores import Column, ScoreTable, percent
from lidarssl.report.shift_section import shift_content
from lidarssl.report.training_curves import curve_section

BASELINES = (
    (
        RANDOM_INIT,
        "The same network with random weights. For the probe its batch-norm statistics are first "
        "adapted by forward passes alone, without which random features look worse than they are; "
        "for fine-tuning it is training from scratch.",
    ),
    (
        LOOK_UP,
        "No network at all: each point takes the class that the labelled frames show most often "
        "at its height, range and intensity, rare classes counted more. Features that do not beat "
        "it hold less than three raw numbers.",
    ),
    (
        PIXEL_POSITION,
        "No network at all: each pixel takes the class that the labelled images show most often at "
        "its place. A road is always below: features that do not beat it have not looked.",
    ),
)
_SECTION_TEXT = {
    Section.INPUT: "What goes in",
    Section.FEATURES: "What the features have learned",
    Section.PREDICTIONS: "What it predicts",
}


def document(title: str, *body: Html | None) -> str:
    """A whole self-contained HTML page; its policy forbids any network access."""
    style = resources.files("lidarssl.report").joinpath("style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(style)),
    )
    page = element("html", head, element("body", element("main", *body)), lang="en")
    return f"<!doctype html>\n{page}\n"


def run_page(run: RunFolder) -> str:
    """The report of one run."""
    title = run.record.title if run.record else run.name
    table = ScoreTable(run.results.efficiency if run.results else ())
    said = headline(table)
    drawings = [drawing for _, drawing in [*run.drawings, *run.shift_drawings]]
    budget = PictureBudget(sum(len(drawing.panels) for drawing in drawings))
    sections = [
        _scores_section(run.results, table),
        _classes_section(run.results),
        _retrieval_section(run),
        _shift_section(run, budget),
        _pictures_section(run.drawings, budget),
        _training_section(run),
        _reproduce_section(run.record),
    ]
    links = [
        element("a", name, href=f"#{anchor}")
        for anchor, name, section in sections
        if section is not None
    ]
    return document(
        title,
        _header(run.record, title),
        _hero(run.results, table, said),
        problems_box(run.problems),
        element("nav", *links) if links else None,
        *(section for _, _, section in sections),
        element("footer", f"Made by lidarssl report from the run folder {run.name}."),
    )


def problems_box(problems: list[str]) -> Html | None:
    """What a page could not show."""
    if not problems:
        return None
    items = [element("li", problem) for problem in problems]
    return element(
        "aside",
        element("strong", "Not in this report, or to be read with care"),
        element("ul", *items),
        class_="problems",
    )


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 4 min 10 s, 3 h 5 min."""
    total = round(seconds)
    if total < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(total, 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


_NamedSection = tuple[str, str, Html | None]


def _section(anchor: str, title: str, *content: Html | None) -> _NamedSection:
    if all(part is None for part in content):
        return anchor, title, None
    return anchor, title, element("section", element("h2", title), *content, id=anchor)


def _header(record: RunRecord | None, title: str) -> Html:
    facts = None
    if record is not None:
        parts = [
            _date(record.created),
            duration(record.wall_seconds),
            record.device,
            f"seed {record.seed}",
            f"lidarssl {record.version}",
        ]
        facts = element("p", *(element("span", part) for part in parts), class_="facts")
    return element(
        "header", element("p", "lidarssl report", class_="eyebrow"), element("h1", title), facts
    )


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
        return f"{moment.day} {moment:%B %Y, %H:%M}"
    except ValueError:
        return created


def _hero(results: Results | None, table: ScoreTable, said: Headline) -> Html:
    bars = charts.score_bars(table, said.column) if said.column else None
    metric = None
    if results is not None and said.column is not None:
        text = f"{results.metric}, on {results.evaluated_on}. Bars: mean; dots: single seeds."
        metric = element("p", text, class_="small")
    remarks = [element("li", remark) for remark in said.remarks]
    return element(
        "section",
        element("p", said.verdict, class_="verdict"),
        element("p", said.numbers, class_="numbers"),
        bars,
        metric,
        element("ul", *remarks, class_="remarks") if remarks else None,
        class_="hero",
    )


def _scores_section(results: Results | None, table: ScoreTable) -> _NamedSection:
    anchor, title = "scores", "What pretraining is worth"
    if results is None or not results.efficiency:
        return anchor, title, None
    drawn = []
    for protocol, caption in (
        (Protocol.PROBE, "Linear probe: a linear classifier on frozen features."),
        (Protocol.FINETUNE, "Fine-tuning: all weights are trained."),
    ):
        chart = charts.label_efficiency(table, protocol)
        if chart is not None:
            drawn.append(element("figure", chart, element("figcaption", caption)))
    counted = tables.counted_classes(results.classes) if results.metric == MIOU_NAN else None
    chart_note = "mIoU, large dots: mean; bars: ± one standard deviation; small dots: single seeds."
    return _section(
        anchor,
        title,
        tables.efficiency_table([("", table)]),
        element(
            "p",
            f"{results.metric}; mean ± sample standard deviation over seeds; below it the "
            f"difference to {RANDOM_INIT}. Evaluated on {results.evaluated_on}.",
            class_="small",
        ),
        element("p", counted, class_="small") if counted else None,
        charts.legend(table.methods) if drawn else None,
        element("div", *drawn, class_="columns") if drawn else None,
        element("p", chart_note, class_="small") if drawn else None,
        _baselines(table),
        _protocols(results),
    )


def _baselines(table: ScoreTable) -> Html:
    items: list[Html] = []
    for name, text in BASELINES:
        if name in LOOK_UPS and name != table.look_up:
            continue
        missing = "" if name in table.methods else " Not run here."
        items.append(element("div", element("dt", name), element("dd", text + missing)))
    return element("dl", *items, class_="baselines")


def _protocols(results: Results) -> Html | None:
    if not results.protocols:
        return None
    items = [
        element(
            "div",
            element("dt", tables.PROTOCOL_NAMES[note.protocol]),
            element("dd", note.description, element("code", note.command, class_="command")),
        )
        for note in results.protocols
    ]
    return join(element("h3", "How each number was made"), element("dl", *items))


def _classes_section(results: Results | None) -> _NamedSection:
    anchor, title = "classes", "Class by class"
    if results is None or not results.classes:
        return anchor, title, None
    parts: list[Html] = []
    for rows in tables.class_groups(results.classes):
        heading = str(Column(rows[0].protocol, rows[0].fraction))
        content = join(charts.legend([row.method for row in rows]), tables.class_table(rows))
        body = join(content, _confusions(rows))
        opened = "" if not parts else None
        summary = element("summary", heading[0].upper() + heading[1:])
        parts.append(element("details", summary, body, open=opened))
    note = (
        "IoU per class, sorted by the gain of pretraining over random init. A dash is a class "
        "with neither truth nor prediction in the test set; it does not count in the mIoU."
    )
    return _section(anchor, title, element("p", note), *parts)


def _confusions(rows: list[ClassTableRow]) -> Html | None:
    drawn = [
        element(
            "figure",
            charts.confusion(row.names, row.confusion),
            element("figcaption", f"{row.method}: {percent(row.fraction)} of the labels"),
        )
        for row in rows
        if row.confusion is not None
    ]
    if not drawn:
        return None
    note = (
        "Confusion: each row is a true class, its cells the share (per cent) of its points that "
        "are given each class. A good row has its strongest colour on the diagonal."
    )
    return join(element("p", note, class_="small"), element("div", *drawn, class_="columns"))


def _retrieval_section(run: RunFolder) -> _NamedSection:
    content = None if run.retrieval is None else retrieval_content(run.retrieval)
    return _section("retrieval", "Do images and scans find each other", content)


def _shift_section(run: RunFolder, budget: PictureBudget) -> _NamedSection:
    anchor, title = "shift", "Under other weather and light"
    if run.shift is None:
        return anchor, title, None
    shown = [picture(record, drawing, budget) for record, drawing in run.shift_drawings]
    gallery = element("div", *shown, class_="gallery") if shown else None
    return _section(anchor, title, shift_content(run.shift), gallery)


def _pictures_section(
    drawings: list[tuple[PictureRecord, Drawing]], budget: PictureBudget
) -> _NamedSection:
    anchor, title = "pictures", "What it looks like"
    if not drawings:
        return anchor, title, None
    parts = []
    for section, heading in _SECTION_TEXT.items():
        chosen = [pair for pair in drawings if pair[0].section is section]
        if chosen:
            shown = [picture(record, drawing, budget) for record, drawing in chosen]
            parts.append(element("h3", heading))
            parts.append(element("div", *shown, class_="gallery"))
    note = None
    if any(drawing.above for _, drawing in drawings):
        text = "Seen from above: forward is up, rings are distances from the sensor (triangle)."
        note = element("p", text, class_="small")
    return _section(anchor, title, note, *parts)


def picture(record: PictureRecord, drawing: Drawing, budget: PictureBudget) -> Html:
    """One picture of a gallery, with what to look for."""
    panels = []
    for panel in drawing.panels:
        image = budget.image(panel.png, f"{record.title} {panel.title}".strip())
        label = element("figcaption", panel.title) if panel.title else None
        panels.append(element("figure", image, label))
    size = {1: "one", 2: "two", 4: "four"}.get(1 if drawing.stacked else len(panels), "three")
    return element(
        "article",
        element("div", *panels, class_=f"panels {size}"),
        _key(drawing.key),
        element("h4", record.title),
        element("p", record.caption),
        class_=f"picture {size}{' wide' if drawing.wide else ''}",
    )


def _key(key: Key) -> Html | None:
    if key.ramp is not None:
        low, high, colormap = key.ramp
        bar = element("i", style=f"background:{ramp_css(colormap)}")
        return element("p", low, bar, high, class_="ramp")
    items = [
        element("li", element("i", style="background:rgb({},{},{})".format(*color)), name)
        for name, color in key.classes
    ]
    return element("ul", *items, class_="legend") if items else None


def _training_section(run: RunFolder) -> _NamedSection:
    parts: list[Html | None] = [_stages(run.record), *curve_section(run.log)]
    return _section("training", "How training went", *parts)


def _stages(record: RunRecord | None) -> Html | None:
    if record is None or not record.stages:
        return None
    total = max(sum(stage.seconds for stage in record.stages), 1e-9)
    rows = [
        element(
            "tr",
            element("th", stage.name, scope="row"),
            element("td", stage.description),
            element("td", duration(stage.seconds)),
            element(
                "td",
                element(
                    "span",
                    element("b", style=f"width:{100 * stage.seconds / total:.1f}%"),
                    class_="share",
                ),
                class_="wide",
            ),
        )
        for stage in record.stages
    ]
    return tables.scrollable(element("table", element("tbody", *rows), class_="stages"))


def _reproduce_section(record: RunRecord | None) -> _NamedSection:
    anchor, title = "reproduce", "Do it again"
    if record is None:
        return anchor, title, None
    versions = [
        element("div", element("dt", name), element("dd", version))
        for name, version in {"lidarssl": record.version, **record.versions}.items()
    ]
    notes = [element("li", note) for note in record.notes]
    recipe = element("details", element("summary", "Recipe"), element("pre", record.recipe))
    return _section(
        anchor,
        title,
        element("ul", *notes, class_="notes") if notes else None,
        element("code", record.command, class_="command"),
        element("dl", *versions, class_="versions"),
        recipe if record.recipe.strip() else None,
    )
