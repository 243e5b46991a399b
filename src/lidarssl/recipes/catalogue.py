"""What `lidarssl recipes` prints."""

from __future__ import annotations

from lidarssl.recipes import schema


def table() -> str:
    """Every shipped recipe with its kind and title."""
    rows = []
    for name, path in schema.shipped().items():
        content = schema.read(path)
        rows.append((name, content["kind"], content.get("about", {}).get("title", "")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {title}" for name, kind, title in rows]
    return "\n".join(
        [
            *lines,
            "",
            "lidarssl recipes NAME          shows one",
            "lidarssl recipes NAME --keys   lists every key that can be overridden",
        ]
    )


def text(name: str) -> str:
    """The YAML of a recipe."""
    return schema.find(name).read_text().rstrip()


def keys(name: str) -> str:
    """Every key of a recipe with its type, default and meaning."""
    kind = schema.read(schema.find(name))["kind"]
    help_text: str = schema.build_parser(kind).format_help()
    return help_text.rstrip()
