"""What the documents say: examples run, commands parse, links lead somewhere, and every module is described."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edsr.cli import build_parser, main
from edsr.images import ImageWriter
from edsr.models import PRESETS, EDSRConfig
from tests.conftest import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")], key=lambda path: path.as_posix()
)
REPLACED = {  # words of earlier names, and British spellings; the new ones are in docs/glossary.md
    "astray", "colour", "enlarge", "enlarged", "grey", "licence", "passage", "picture", "pictures", "setback", "truth",
    "verdict", "verdicts", "yardstick",
}  # fmt: skip
HISTORY = ("log.md", "CHANGELOG.md")  # may name what is gone

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path: Path, language: str) -> list[str]:
    """The contents of the fenced blocks of one language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", path.read_text(encoding="utf-8"), re.M | re.S)


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ +(.+)$", prose(path), re.M)


def anchor(heading: str) -> str:
    """What a heading is called in a link: as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current folder, with the images that the examples name."""
    with Image.open(ROOT / "examples" / "harbour.png") as file:
        image = np.asarray(file.convert("RGB"))[:40, :56]
    (tmp_path / "examples").mkdir()
    for name in ("photo.png", "examples/harbour.png"):
        Image.fromarray(image).save(tmp_path / name)
    deep = image.astype(np.uint16) * 257
    with ImageWriter(tmp_path / "scan.tif", deep.shape[1], deep.shape[0], 3, dtype=deep.dtype) as writer:
        writer.write(deep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", "docs/api.md"])
def test_examples_in_python_run(name, desk):
    """In order, in one namespace."""
    namespace: dict = {}
    found = blocks(ROOT / name, "python")
    assert found
    for source in found:
        exec(compile(source, name, "exec"), namespace)
    written = {"README.md": "large.png", "docs/api.md": "scan_x2.tif"}[name]
    with Image.open(desk / written) as file:
        assert file.size == (112, 80)


@documents
def test_commands_parse(path):
    parser = build_parser()
    for block in blocks(path, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            words = words[: next((i for i, word in enumerate(words) if word in ("<", ">")), None)]
            if "cli.py" not in words:
                continue
            arguments = words[words.index("cli.py") + 1 :]
            try:
                parser.parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{path.name}: {line}")


@pytest.mark.slow
def test_the_tour_goes_through(desk, capsys, monkeypatch):
    """Each command ends well, in order, on a part of the image; training is of a small network."""
    with Image.open(ROOT / "examples" / "harbour.png") as file:
        file.crop((0, 0, 200, 160)).save(desk / "examples" / "harbour.png")
    tiny = EDSRConfig(blocks=1, features=8)
    monkeypatch.setitem(PRESETS, "edsr-baseline", tiny)
    lines = [shlex.split(block) for block in blocks(ROOT / "docs" / "tour.md", "sh")]
    assert len(lines) == 10
    for words in lines:
        assert words[:2] == ["python", "cli.py"]
        assert main(words[2:]) == 0, (words, capsys.readouterr().err)
    sizes = {"examples/harbour_x2.png": (400, 320), "large/harbour_x4.png": (800, 640), "clean.png": (600, 480)}
    sizes |= {"harbour.jpg": (600, 480), "all/harbour_x2.png": (400, 320)}
    for name, size in sizes.items():
        with Image.open(desk / name) as file:
            assert file.size == size
    assert (desk / "harbour.html").is_file() and (desk / "runs/first/best.safetensors").is_file()
    assert "is there already: skipped" in capsys.readouterr().err


def test_every_option_in_prose_is_one():
    """Of `python cli.py ...` in running text, too: each command that is written out whole."""
    parser = build_parser()
    for path in DOCUMENTS:
        for command in re.findall(r"`python cli\.py ([^`\n]+)`", prose(path)):
            words = shlex.split(command)
            if len(words) > 1:
                try:
                    parser.parse_args(words)
                except SystemExit:
                    pytest.fail(f"{path.name}: {command}")


@documents
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if fragment:
            assert fragment in map(anchor, headings(linked)), f"{path.name}: {target}"


@documents
def test_words_are_those_of_the_glossary(path):
    text = "\n".join(headings(path)) if path.name in HISTORY else re.sub(r"`[^`\n]*`", "", prose(path))
    assert not REPLACED & set(re.findall(r"\w+", text.lower()))


def modules(folder: str) -> list[Path]:
    """The modules below a folder, but for faces."""
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.startswith("__")]


def test_architecture_names_every_module():
    """Each in the row of its package: a module by its name alone, one that lies in no package by its path."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| (\S+) \| (.*) \|$", text, re.M)
    described = {package.strip("`/"): set(re.findall(r"`(\w+)`", row)) for package, row in rows}
    for path in modules("edsr"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("edsr/kernels/"):  # a link to kernels/
            assert name in described or path.stem in described.get(path.parent.relative_to(ROOT).as_posix(), ()), name
    assert "kernels" in described


def test_the_tree_of_kernels_names_every_module():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    tree = text[text.index("\nkernels/\n") :].partition("```")[0]
    named = re.findall(r"\b(\w+)\.py\b", tree)
    assert set(named) == {path.stem for path in modules("kernels")}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_readme_has_the_two_commands_that_ci_takes():
    """`.ci/run` runs the second block, with another folder in place of `.venv`."""
    first, second = blocks(ROOT / "README.md", "sh")[:2]
    assert first.startswith("python3 -m venv .venv && ") and "upscale examples/harbour.png" in first
    assert second.startswith("python3 -m venv .venv && ") and second.endswith(" -m pytest -n auto\n")


@documents
def test_modules_that_are_named_exist(path):
    """Paths of source files in backquotes; the log may name what is gone."""
    if path.name in HISTORY:
        return
    for name in re.findall(r"`((?:edsr|kernels|bench|tests|examples)/[\w/.-]*\w)/?`", prose(path)):
        if not name.endswith("_x2.png"):  # a result
            assert (ROOT / name).exists(), f"{path.name}: {name}"
