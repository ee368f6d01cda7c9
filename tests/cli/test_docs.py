"""The pages say what there is, and lead to each other."""

import inspect
import re
import runpy
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object
from pages import DOCS, PAGES, name_of, prose
from repository import ROOT

from semcorr.engine.known_targets import conf_dir

PAGE_OF_GROUP = {
    "backbone": "backbones", "finetune": "finetuning", "data": "data", "head": "heads", "loss": "losses",
    "pairs": "losses", "pose": "pose", "protocol": "protocols", "corrupt": "robustness", "upsample": "heads",
}  # fmt: skip


@pytest.mark.parametrize(("group", "page"), PAGE_OF_GROUP.items())
def test_every_choice_is_on_its_page(group, page):
    text = (DOCS / f"{page}.md").read_text()
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")} - {"common", "tiny"}

    assert not [name for name in sorted(names) if f"`{name}`" not in text and f"={name}" not in text]


@pytest.mark.parametrize("group", ["data", "head", "loss", "augment", "localise", "protocol", "callbacks", "upsample"])
def test_the_readme_names_every_choice(group):
    text = (ROOT / "README.md").read_text()
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")} - {"common"}
    names = {name for name in names if not re.search(r"_\d+$", name)}  # of one readout, with another number

    assert not [name for name in sorted(names) if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)]


@pytest.fixture(scope="module")
def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def leaves(nav: object) -> list[str]:
    """The pages of a navigation, in its order."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in leaves(child)]


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_every_page_is_in_the_navigation_once(site):
    assert sorted(leaves(site["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = DOCS not in page.parents or DOCS in target.parents  # a site holds nothing from beside its folder
        known = target.exists() and inside and (not anchor or anchor in anchors(target))
        lost += [] if link.startswith("https://") or known else [link]
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_code_has_a_language(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.M)

    assert all(fences[::2])  # the others close one
    assert not any(fences[1::2])


def test_the_reference_shows_public_names_one_by_one_and_every_choice():
    named = [name for page in DOCS.rglob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    objects = [shown_object(name) for name in named]
    crossed = {name for page in DOCS.rglob("*.md") for name in re.findall(r"\]\[(semcorr[\w.]+)\]", prose(page))}
    targets = {
        target
        for file in conf_dir().rglob("*.yaml")
        for target in re.findall(r"_target_: (semcorr[\w.]+)", file.read_text())
    }

    assert len({*named}) == len(named)
    assert not [name for name in named if name.rpartition(".")[2].startswith("_")]
    assert not [name for name, each in zip(named, objects, strict=True) if inspect.ismodule(each)]
    assert not [name for name, each in zip(named, objects, strict=True) if callable(each) and not inspect.getdoc(each)]
    assert not [name for name in sorted(targets) if not any(get_object(name) is each for each in objects)]
    assert crossed <= {*named}


def shown_object(name: str) -> object:
    """What a line of the reference shows; a module may have the name of a function that hides it."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def test_examples_of_docstrings_become_blocks_of_code():
    pytest.importorskip("griffe")
    fence_examples = runpy.run_path(str(ROOT / "scripts/docs_docstrings.py"))["fence_examples"]

    assert fence_examples("One.\n\n>>> f(1)\n2\n\nTwo.") == "One.\n\n```pycon\n>>> f(1)\n2\n```\n\nTwo."
    assert fence_examples("Example:\n    >>> f(1)\n    2\n") == "Example:\n    ```pycon\n    >>> f(1)\n    2\n    ```\n"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module)
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    fetched = (
        r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]* href=\"?(?:https?:)?//|@import|url\(\"?https?:"
    )
    assert not [found for page in pages for found in re.findall(fetched, page)]
    assert not [page for page in pages if "arithmatex" in page]
    shapes = unescape(re.sub(r"<[^>]+>", "", (tmp_path / "reference/metrics.html").read_text()))
    assert 'predicted: Float[Tensor, "b n 2"],' in shapes
