from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from lidarssl.report.markup import Html, element, escape, join


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


visible = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@given(visible, visible)
def test_any_text_stays_text(child: str, attribute: str) -> None:
    reader = read(element("p", child, title=attribute))
    assert reader.text == child
    assert reader.tags == [("p", {"title": attribute})]


@given(st.text())
def test_any_text_can_be_written_as_utf8(text: str) -> None:
    escape(text).encode("utf-8")


def test_markup_passes_text_does_not() -> None:
    assert join("<b>", Html("<b>"), None) == "&lt;b&gt;<b>"
    assert element("td", "a", class_="x", stroke_width=1.5, id=None) == (
        '<td class="x" stroke-width="1.5">a</td>'
    )
    assert element("br") == "<br>"
    assert '"' not in element("i", title=Html('"'))[10:-7]


def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    assert escape("a\x00b\ud800") == "a\ufffdb?"
