"""The command python -m semcorr.backbones: every backbone by name, with patch, widths, parameters and licence."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import run_app
from semcorr.core.terminal import Terminal

if TYPE_CHECKING:  # its package imports torch, which --help does not need
    from semcorr.models.backbones.network_facts import NetworkFacts

HEADERS = ("backbone", "network", "patch", "widths", "parameters", "licence of the weights", "gated")
BY_NAME = ("timm", "transformers")  # they take the name of any network, and have no facts of their own
TESTS = ("tiny",)
NAME = 24  # characters of the longest name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def list_backbones() -> None:
    """List every backbone: patch, widths and parameters, licence of its weights, whether they are gated.

    A line is what backbone=NAME reads by default. What could not be established is unknown.
    """
    with report_user_errors("evaluate"):
        Terminal().print(build_backbone_table())
        print("Any other network: backbone=timm backbone.name=NAME, backbone=transformers backbone.name=ACCOUNT/MODEL")


def build_backbone_table() -> Table:
    """Build the table of all backbones, those of installed packages among them."""
    from semcorr.engine.packages import list_choices
    from semcorr.models.backbones.network_facts import NetworkFacts, read_network_facts

    published = read_network_facts()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in HEADERS:
        justify: JustifyMethod = "right" if header in ("patch", "widths", "parameters") else "left"
        least = NAME if header == HEADERS[0] else None  # names are typed from here: of a narrow line, others are cut
        table.add_column(header, justify=justify, no_wrap=least is not None, min_width=least)
    for name in list_choices("backbone"):
        if name not in (*BY_NAME, *TESTS):
            table.add_row(name, *format_network(published.get(name, NetworkFacts())))
    return table


def format_network(network: "NetworkFacts") -> list[str]:
    """Format the facts of a network; `unknown` where there is none."""
    count = network.parameters
    cells = [
        network.network,
        network.patch,
        None if network.widths is None else " + ".join(map(str, network.widths)),
        None if count is None else f"{count / 1e6:,.1f} M",
        network.licence,
        network.gated,
    ]
    return ["unknown" if cell is None else str(cell) for cell in cells]


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr backbones`, and return its exit code."""
    return run_app(app, words, "semcorr backbones")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
