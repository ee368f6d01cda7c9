"""Measure the shape of the package: loose files, import circles, names, `Any`, and the files of one evaluation.

    python scripts/measure_structure.py            # the table
    python scripts/measure_structure.py --list     # with the places that are counted
    python scripts/measure_structure.py --run      # with one evaluation, which takes some seconds

The exit code is 1 where a bound is exceeded.
"""

import argparse
import ast
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "semcorr"

PRONOUN_LIST = """
    it its one ones some each other others mine own ours theirs this that these those what which who all any both none
"""
IRREGULAR_LIST = """
    been begun bent bound bought brought built caught chosen cut dealt done drawn driven eaten fallen felt fought found
    given gone grown heard held hidden hit hung kept known laid led left lent lost made meant met paid put read said
    seen sent set shown shut sold spelt spent split stood stuck sunk swept taken taught thought thrown told torn typed
    understood undone won worn written
"""
PRONOUNS, IRREGULAR = set(PRONOUN_LIST.split()), set(IRREGULAR_LIST.split())
VERBS_TOO = {"cut", "hit", "put", "read", "set", "split"}  # alike in both forms: a verb, as a function's name is
NOUNS_IN_ED = {"embed", "feed", "need", "seed", "shed", "speed"}
OBJECTS = {"module", "data", "head", "backbone", "trainer"}


class Measure(NamedTuple):
    """A figure with its bound and the places that it counts."""

    name: str
    value: float
    bound: float
    places: list[str]
    unit: str = ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the places that are counted")
    parser.add_argument("--run", action="store_true", help="trace one evaluation, too")
    arguments = parser.parse_args()
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    measures = [measure_loose_files(trees), measure_circles(trees), *measure_names(trees), *measure_types(trees)]
    if arguments.run:
        measures.append(measure_evaluation())
    table = Table("", "value", "bound")
    for measure in measures:
        style = "" if measure.value <= measure.bound else "red"
        table.add_row(
            measure.name, f"{measure.value:.4g}{measure.unit}", f"{measure.bound:g}{measure.unit}", style=style
        )
    console = Console()
    console.print(table)
    for measure in measures if arguments.list else ():
        console.print(f"\n{measure.name}", style="bold")
        for place in measure.places:
            console.print(f"  {place}", highlight=False)
    sys.exit(any(measure.value > measure.bound for measure in measures))


def measure_loose_files(trees: dict[Path, ast.Module]) -> Measure:
    """Count the files at the package root."""
    loose = [path.name for path in trees if path.parent == PACKAGE]
    doors = 10  # commands that are run by their module's name, beside __init__ and __main__
    return Measure("files loose at the package root", len(loose), doors + 2, loose)


def measure_circles(trees: dict[Path, ast.Module]) -> Measure:
    """Count the circles of imports, those within functions included."""
    modules = {module_name(path): tree for path, tree in trees.items()}
    imports = {name: {*imported_modules(tree, modules)} - {name} for name, tree in modules.items()}
    circles = [sorted(group) for group in strong_components(imports) if len(group) > 1]
    return Measure("import circles", len(circles), 0, [" <-> ".join(circle) for circle in circles])


def module_name(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[str]:
    """Yield what a module imports of this package, anywhere in it but for the eyes of a type checker."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names if node.module in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def strong_components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Group the nodes that reach each other."""
    reached = {node: reachable_from(node, graph) for node in graph}
    groups: list[set[str]] = []
    grouped: set[str] = set()
    for node in graph:
        if node not in grouped:
            groups.append({node} | {other for other in reached[node] if node in reached[other]})
            grouped |= groups[-1]
    return groups


def reachable_from(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Return the nodes that arrows lead to from a node."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def measure_names(trees: dict[Path, ast.Module]) -> list[Measure]:
    """Count what the names of public functions and classes at the top of modules are."""
    places = defaultdict(list)
    functions = []
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                places[node.name].append(place)
                if isinstance(node, ast.FunctionDef):
                    functions.append((node.name, place))
    participles = [place for name, place in functions if is_participle(name) or name in PRONOUNS]
    single = [place for name, place in functions if "_" not in name]
    repeated = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1 and name != "main"]
    return [
        Measure("public functions named by a participle or a pronoun", len(participles), 0, participles),
        Measure("public functions of one word", 100 * len(single) / len(functions), 15, single, " %"),
        Measure("public names defined in more than one module", len(repeated), 10, repeated),
    ]


def is_participle(name: str) -> bool:
    """Tell whether a name is a bare past participle."""
    if name in VERBS_TOO | NOUNS_IN_ED:
        return False
    return name in IRREGULAR or bool(re.fullmatch(r"[a-z]+ed", name))


def measure_types(trees: dict[Path, ast.Module]) -> list[Measure]:
    """Count `Any` among annotations, and comments by which a type checker or a formatter leaves a line alone."""
    used, objects = [], []
    comments: dict[str, list[str]] = {"type: ignore": [], "fmt: skip": []}
    for path, tree in trees.items():
        for name, annotation in iterate_annotations(tree):
            count = sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))
            place = f"{path.relative_to(ROOT)}:{annotation.lineno} {name}: {ast.unparse(annotation)}"
            used += [place] * count
            objects += [place] * bool(count and name in OBJECTS)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for comment, lines in comments.items():
                lines += [f"{path.relative_to(ROOT)}:{number}"] * (f"# {comment}" in line)
    return [
        Measure("`Any` in annotations", len(used), 60, used),
        Measure("`Any` for module, data, head, backbone or trainer", len(objects), 0, objects),
        *(Measure(f"`{comment}`", len(lines), 15, lines) for comment, lines in comments.items()),
    ]


def iterate_annotations(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield the annotations with what they are of: an argument, a variable, or `return`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target).rpartition(".")[2], node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield "return", node.returns


def measure_evaluation() -> Measure:
    """Count the files of which a function is called in one evaluation, from its command line to its last file."""
    from semcorr.evaluate import main as evaluate

    called: set[str] = set()
    prefix = str(PACKAGE)

    def see(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix) and not is_part_of_importing(frame):
            called.add(code.co_filename)

    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [
            f"run_dir={folder}/run",
            "data=synthetic",
            f"data.root={folder}/data",
            "data.train=3",
            "data.val=2",
            "data.test=3",
            "data.pixels=96",
            "data.workers=0",
            "backbone=tiny",
            "trainer=cpu",
        ]
        sys.setprofile(see)
        try:
            evaluate()
        except SystemExit as end:
            sys.exit(end.code)
        finally:
            sys.setprofile(None)
    files = sorted(str(Path(name).relative_to(ROOT)) for name in called)
    return Measure("files that one evaluation runs through", len(files), 40, files)


def is_part_of_importing(frame: FrameType | None) -> bool:
    """Tell whether a module's own code, as a decorator or a constant, has led to a call."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
