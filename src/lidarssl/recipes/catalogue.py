"""What `lidarssl recipes` prints."""

from __future__ import annotations

from lidarssl.recipes import files


def table() -> str:
    """Every shipped recipe with the verb that runs it and its title."""
    rows = []
    for name, path in files.shipped().items():
        content = files.read(path)
        rows.append((name, files.verb(content), content.get("about", {}).get("title", "")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {verb:<{widths[1]}}  {title}" for name, verb, title in rows]
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
    return files.find(name).read_text().rstrip()


def keys(name: str) -> str:
    """Every key of a recipe with its value, type, default and meaning.

    Raises:
        ConfigError: the recipe does not say what to build.
    """
    from lidarssl.recipes.describe import describe_section
    from lidarssl.recipes.keys import Section, import_rooms, sections
    from lidarssl.recipes.schema import KINDS

    content = files.read(files.find(name))
    verb, kind = files.verb(content), content.pop("kind")
    import_rooms()
    parts = [
        describe_section(section)
        for section in sections(Section("", KINDS[kind], KINDS[kind], content))
    ]
    head = (
        f"Keys of {name}, run by `lidarssl {verb}`; * = set by the recipe.\n"
        f"Any of them can follow it: lidarssl {verb} {name} --key value"
    )
    return "\n\n".join([head, *parts])
