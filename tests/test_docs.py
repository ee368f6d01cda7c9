"""The pages say what there is."""

from pathlib import Path

import pytest

from semcorr.cli import conf_dir

DOCS = Path(__file__).parents[1] / "docs"


PAGES = {
    "backbone": "backbones", "finetune": "finetuning", "data": "data", "head": "heads", "loss": "losses",
    "pairs": "losses", "pose": "pose", "protocol": "protocols",
}  # fmt: skip


@pytest.mark.parametrize(("group", "page"), PAGES.items())
def test_every_choice_is_on_its_page(group, page):
    text = (DOCS / f"{page}.md").read_text()
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")} - {"common", "tiny"}

    assert not [name for name in sorted(names) if f"`{name}`" not in text and f"={name}" not in text]
