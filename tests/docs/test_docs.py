"""What the documentation says is true: its commands parse, its snippets run, its links lead."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import REPOSITORY
from lidarssl.cli import build_parser
from lidarssl.datasets.world.config import WorldConfig
from lidarssl.errors import ConfigError
from lidarssl.experiments.downstream import POINTS
from lidarssl.images.base import ImageEncoder
from lidarssl.metrics.segmentation import PROTOCOLS
from lidarssl.prepare.labellers.base import Labeller
from lidarssl.recipes import schema
from lidarssl.recipes.overrides import override

README = REPOSITORY / "README.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
KINDS = {
    "pretrain": ["pretrain"],
    "probe": ["probe", "segmentation", "image_segmentation"],
    "finetune": ["segmentation", "image_segmentation"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if found[1] in languages:
                yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])


def commands(block: Block, program: str) -> list[list[str]]:
    """Words of every call of ``program`` in a shell block, without launcher and redirection."""
    text = re.sub(r" > \S+$", "", block.text, flags=re.MULTILINE)
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[line.index(program) :] for line in lines if program in line]


def lidarssl_commands() -> list[Any]:
    return [
        pytest.param(command[1:], id=f"{block}: {' '.join(command[1:])[:60]}")
        for block in blocks("bash")
        for command in commands(block, "lidarssl")
    ]


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Arguments of the verb, and the words that it passes on."""
    parser = build_parser()
    _, known, options = parser.split(words)
    return parser.parse_args(known), options


def option(words: list[str], name: str) -> str | None:
    return next((after for word, after in pairwise(words) if word == name), None)


@pytest.fixture
def own_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the recipe files that the docs speak of exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/slidr").mkdir(parents=True)
    pretrain = schema.files.find("slidr_minkunet_synthetic").read_text()
    for name in ("my_pretrain.yaml", "my_recipe.yaml", "runs/slidr/recipe.yaml"):
        (tmp_path / name).write_text(pretrain)
    probe = schema.files.find("probe_minkunet_synthetic").read_text()
    (tmp_path / "my_probe.yaml").write_text(probe)
    return tmp_path


@dataclass
class Parts:
    """What passes of `lidarssl prepare` build beside a dataset."""

    encoder: ImageEncoder
    labeller: Labeller


def parts_of(words: list[str]) -> tuple[list[str], list[str]]:
    """Words of the options of ``Parts``, with their values, and the others."""
    own: list[str] = []
    others: list[str] = []
    for word in words:
        if word.startswith("--"):
            place = own if re.match(r"--(encoder|labeller)(\.|=|$)", word) else others
        place.append(word)
    return own, others


@pytest.mark.parametrize("words", lidarssl_commands())
def test_commands_name_verbs_options_and_recipes_that_exist(
    words: list[str], own_recipes: Path
) -> None:
    arguments, overrides = parse(words)
    assert callable(arguments.run_verb)
    verb = words[0]
    if verb in KINDS:
        schema.parse(arguments.recipe, overrides, KINDS[verb])
    elif hasattr(arguments, "dataset"):
        parts, of_dataset = parts_of(overrides)
        override(schema.dataset_class(arguments.dataset), {}, of_dataset)
        override(Parts, {}, ["--encoder.class_path=ViT", *parts])
    elif verb == "evaluate" and arguments.shift is not None:
        override(schema.dataset_class(arguments.shift), {}, overrides)
    elif words[:2] == ["data", "synthesize"]:
        override(WorldConfig, {}, overrides)
    elif verb == "calibrate":
        schema.parse("nclr_minkunet_synthetic", overrides)
    else:
        assert not overrides
    if verb == "recipes" and arguments.name is not None:
        schema.files.find(arguments.name)
    if verb == "evaluate":
        assert arguments.protocol in PROTOCOLS
        assert arguments.points in POINTS


def test_a_wrong_command_would_be_noticed(own_recipes: Path) -> None:
    with pytest.raises(ConfigError):
        schema.parse("slidr_minkunet_synthetic", ["--training.stepz", "3"])
    with pytest.raises(ConfigError):
        override(schema.dataset_class("folder"), {}, ["--roote", "x"])
    with pytest.raises(ConfigError):
        parse(["pretend"])
    assert len(lidarssl_commands()) > 40


@pytest.mark.parametrize("block", list(blocks("bash")), ids=str)
def test_superpixels_are_prepared_as_the_recipe_beside_them_reads_them(block: Block) -> None:
    found = commands(block, "lidarssl")
    prepared = {
        option(words, "--output"): words
        for words in found
        if words[1:3] == ["prepare", "superpixels"]
    }
    for words in found:
        folder = option(words, "--method.superpixels.folder")
        if folder is None:
            continue
        made = parse(prepared[folder][1:])[0]
        recipe = yaml.safe_load(schema.parse(words[2], words[3 : words.index("--run")]).resolved)
        read = recipe["method"]["init_args"]["superpixels"]
        for name in ("segments", "compactness", "sigma", "scale"):
            assert read.get("init_args", read)[name] == getattr(made, name), (str(block), name)


@pytest.mark.parametrize("block", list(blocks("yaml")), ids=str)
def test_recipes_in_the_docs_parse(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(block.text)
    schema.parse(str(path))


def test_python_runs(tmp_path: Path) -> None:
    """Every snippet by itself, in one process: importing torch takes longer than all of them."""
    found = list(blocks("python"))
    assert len(found) >= 5
    code = "\n".join(
        f"exec(compile({block.text!r}, {str(block)!r}, 'exec'), {{'__name__': 'snippet'}})"
        for block in found
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", list(blocks("bash")), ids=str)
def test_scripts_exist_and_have_the_options(block: Block) -> None:
    for words in commands(block, "python"):
        if words[1] == "-m":
            assert importlib.util.find_spec(words[2]) is not None, str(block)
            continue
        script = (REPOSITORY / words[1]).read_text("utf-8")
        if "argument_parser(" in script:
            script += (REPOSITORY / "benchmarks/measuring.py").read_text("utf-8")
        for word in words[2:]:
            assert not word.startswith("--") or f'"{word}"' in script, f"{block}: {word}"
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for words in commands(block, "make"):
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{block}: make {words[1]}"


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as the usual renderers make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_modules_and_recipes_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]+)`", text):
        assert (REPOSITORY / path).exists(), f"{page.name}: {path}"
    for name in re.findall(r"`(lidarssl(?:\.\w+)+)`", text):
        assert resolves(name), f"{page.name}: {name}"
    methods = "slidr|ppkt|also|scalr|olivine|nclr|clcp|probe|finetune"
    backbones = "minkunet|spvcnn|second|voxelnet|waffleiron|vit"
    for name in re.findall(rf"`((?:{methods})_(?:{backbones})_\w+)`", text):
        assert name in schema.files.shipped(), f"{page.name}: {name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[depth:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False


def test_readme_fits_a_screen_or_two() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 90


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {page.name for page in PAGES if f"docs/{page.name}" in README.read_text("utf-8")}
    assert linked == {page.name for page in (REPOSITORY / "docs").glob("*.md")}
