"""The pages say what there is, and lead to each other."""

import re
import runpy
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from semcorr.engine.known_targets import conf_dir

DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


PAGES = {
    "backbone": "backbones", "finetune": "finetuning", "data": "data", "head": "heads", "loss": "losses",
    "pairs": "losses", "pose": "pose", "protocol": "protocols",
}  # fmt: skip


@pytest.mark.parametrize(("group", "page"), PAGES.items())
def test_every_choice_is_on_its_page(group, page):
    text = (DOCS / f"{page}.md").read_text()
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")} - {"common", "tiny"}

    assert not [name for name in sorted(names) if f"`{name}`" not in text and f"={name}" not in text]


@pytest.fixture(scope="module")
def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def leaves(nav: object) -> list[str]:
    """The pages of a navigation, in its order."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in leaves(child)]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_every_page_is_in_the_navigation_once(site):
    assert sorted(leaves(site["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = DOCS not in page.parents or DOCS in target.parents  # a site holds nothing from beside its folder
        known = target.exists() and inside and (not anchor or anchor in anchors(target))
        lost += [] if link.startswith("https://") or known else [link]
    assert not lost


def test_every_module_of_the_reference_exists_and_every_choice_is_in_it():
    named = {name for page in DOCS.rglob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
    crossed = {name for page in DOCS.rglob("*.md") for name in re.findall(r"\]\[(semcorr[\w.]+)\]", prose(page))}
    targets = {
        target
        for file in conf_dir().rglob("*.yaml")
        for target in re.findall(r"_target_: (semcorr[\w.]+)", file.read_text())
    }

    assert not [name for name in sorted(named) if find_spec(name) is None]
    assert not [name for name in sorted(targets | crossed) if name.rpartition(".")[0] not in named]


def test_examples_of_docstrings_become_blocks_of_code():
    pytest.importorskip("griffe")
    fenced = runpy.run_path(str(ROOT / "scripts/docs_docstrings.py"))["fenced"]

    assert fenced("One.\n\n>>> f(1)\n2\n\nTwo.") == "One.\n\n```pycon\n>>> f(1)\n2\n```\n\nTwo."
    assert fenced("Example:\n    >>> f(1)\n    2\n") == "Example:\n    ```pycon\n    >>> f(1)\n    2\n    ```\n"


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
