"""What documents print is what the package does: commands, Python, links."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nerve_fast.cli import main as cli
from nerve_fast.tiny.scenes import generate

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN = ("segment", "map", "evaluate", "plan", "doctor", "demo")
"""Commands that are run, with the models that ship in place of the real ones."""

NOT_HERE = ("--root", "FOLDER", "--graph", "--scribbles")
"""With these a command needs data or a network from elsewhere, and is parsed only."""


def blocks(language):
    """Pairs of a document and a fenced block of it."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield path, block


def commands():
    """Every command of a document, comments removed."""
    seen = {}
    for path, block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                seen.setdefault(tuple(words), path.relative_to(ROOT))
    return [
        pytest.param(list(words), id=f"{path}: {shlex.join(words)}") for words, path in seen.items()
    ]


def targets():
    """What the Makefile can be asked for."""
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def declared_extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([a-z]+) = \[", table, re.MULTILINE))


def parsed(words):
    """The options of a command of ours, which the command's own parser takes."""
    with contextlib.redirect_stderr(sys.stdout):
        return cli._parser().parse_args(words)


@pytest.mark.parametrize("words", commands())
def test_a_printed_command_is_taken(words, tmp_path, monkeypatch, make_raster, make_film, capsys):
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "make":
        assert set(words[1:]) <= set(targets())
    elif words[:2] == ["pip", "install"]:
        extras = re.match(r"nerve-fast(?:\[(.*)\])?$", words[2])[1]
        assert set((extras or "").split(",")) - {""} <= declared_extras()
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2].replace("bench.", "nerve_fast.bench.", 1))
    elif "-m" in words[:-1] and words[0] == "accelerate":
        at = words.index("-m")
        assert words[at + 1] == "nerve_fast"
        parsed(words[at + 2 :])
    elif words[0] == ".":
        # Where the Makefile's commands are installed.
        assert words[1:] == [".venv/bin/activate"]
    elif words[0] == "nerve-fast":
        taken(words[1:], tmp_path, monkeypatch, make_raster, make_film)
    else:
        raise AssertionError(f"no test knows how to try: {shlex.join(words)}")


def taken(words, folder, monkeypatch, make_raster, make_film):
    """The command is parsed, and run where what it needs is here or can be stood in for."""
    options = parsed(words)
    if words[0] not in RUN or set(NOT_HERE) & set(words):
        return
    monkeypatch.chdir(folder)
    if words[0] == "segment":
        if options.images[0].suffix == ".mp4":
            make_film([np.asarray(generate(970_000)[0])] * 2, options.images[0].name)
        else:
            generate(970_000)[0].save(options.images[0])
        Path("labels.txt").write_text("cat, kitten\ndog\n", encoding="utf-8")
    if words[0] == "map":
        scene = np.asarray(generate(970_000)[0]).transpose(2, 0, 1).astype(np.uint16)
        make_raster(scene[[2, 1, 0, 1]], options.raster.name)
    if words[0] in ("segment", "map", "evaluate"):
        words = [*words, "--device", "cpu", *(["--models", "tiny"] * ("--models" not in words))]
    if words[0] == "evaluate" and "--limit" not in words:
        words = [*words, "--limit", "2"]
    if words[0] == "demo":
        words = [*words, "--scenes", "1"]
    assert cli.main(words) == 0


def test_python_of_the_documents_compiles():
    for path, block in blocks("python"):
        compile(block, str(path), "exec")


@pytest.mark.parametrize("name", ["own-graph", "own-prior"])
def test_python_of_the_guides_to_ones_own_runs(name, tmp_path, monkeypatch, capsys):
    """With the models that ship where the guide takes the usual ones."""
    import nerve_fast as nf

    load = nf.NervePipeline.from_pretrained

    def shipped(**given):
        models = "tiny" if given.get("graph") is None else None
        return load(models, **given, device="cpu")

    monkeypatch.chdir(tmp_path)
    generate(970_000)[0].save("photo.jpg")
    monkeypatch.setattr(nf.NervePipeline, "from_pretrained", shipped)
    names = {}
    for path, block in blocks("python"):
        if path == ROOT / f"docs/guides/{name}.md" and "facebook/" not in block:
            exec(compile(block, name, "exec"), names)
    assert len(names["out"].label_map.unique()) > 1
    assert name != "own-graph" or "factorized" in capsys.readouterr().out


def test_python_of_the_readme_runs(tmp_path, monkeypatch, pipe):
    import torch
    from PIL import Image

    import nerve_fast as nf

    monkeypatch.chdir(tmp_path)
    generate(970_000)[0].save("photo.jpg")
    monkeypatch.setattr(nf.NervePipeline, "from_pretrained", lambda: pipe)
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    q, k = torch.randn(2, 3, 20, 8)
    names = {"q": q, "k": k, "prior": torch.rand(20, 4).softmax(-1), "h": 4, "w": 5}
    for path, block in blocks("python"):
        if path == ROOT / "README.md":
            exec(compile(block, "README.md", "exec"), names)
    assert names["P"].shape == (20, 4)
    assert Path("photo.png").is_file()


def test_links_lead_somewhere():
    for path in [*DOCUMENTS, *ROOT.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"https?:", target):
                assert (path.parent / target).exists(), (path.relative_to(ROOT), target)


def test_every_public_name_is_in_the_api():
    import nerve_fast as nf

    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    described = set(re.findall(r"^::: nerve_fast\.(\w+)$", text, re.MULTILINE))
    assert described == set(nf.__all__)


def test_extras_are_listed():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == declared_extras()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; the extra 'docs' brings it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page
        # Nothing is fetched from elsewhere when a page is read.
        assert not re.findall(r'<(?:script|img)[^>]* src="https?:', text), page
        assert not re.findall(r'<link rel="stylesheet" href="https?:', text), page
    shutil.rmtree(tmp_path / "site")
