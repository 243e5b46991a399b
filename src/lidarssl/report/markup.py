"""HTML and SVG text that cannot be injected into: only ``Html`` passes unescaped."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"img", "br", "meta", "link", "hr"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Any text as HTML: control characters and lone surrogates become a replacement mark."""
    clean = text if isinstance(text, Html) else html.escape(_CONTROL.sub("\ufffd", text))
    return Html(clean.encode("utf-8", "replace").decode("utf-8"))


def join(*children: str | None) -> Html:
    """Children one after the other, escaped unless they are ``Html``; None is nothing."""
    return Html("".join(escape(child) for child in children if child is not None))


def element(tag: str, /, *children: str | None, **attributes: str | float | None) -> Html:
    """``<tag attributes>children</tag>``.

    Args:
        attributes: ``class_`` becomes class, ``stroke_width`` stroke-width; None is left out.
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{tag}{''.join(parts)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(*children)}</{tag}>")


def _text(value: str | float) -> str:
    return str(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
