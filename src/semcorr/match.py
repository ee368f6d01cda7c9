"""python -m semcorr.match A B: match points of one picture to another, or to every picture of a folder."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import DEVICE, PRECISION, Without, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import (
    atomic_output_dir,
    list_outputs,
    require_inputs_kept,
    require_output_dir,
    unique_names,
    write_json,
)
from semcorr.core.ranges import Range
from semcorr.core.terminal import Stage, print_line
from semcorr.core.text_files import JsonObject

if TYPE_CHECKING:  # they import torch, which --help does not need
    from PIL.Image import Image

    from semcorr.data.pictures import Picture
    from semcorr.inference import Matcher
    from semcorr.inference.encoded import EncodedPicture
    from semcorr.inference.matches import Match

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NUMBERS = r"-?[\d.]+(e-?\d+)?,-?[\d.]+(e-?\d+)?"


class MatchOptions(NamedTuple):
    """The options of the command that select points and outputs."""

    points: Sequence[tuple[float, float]] | None  # (x, y) in original pixels of the source; None for a grid
    mutual: bool  # whether mutual nearest neighbours are matched, in place of points
    limit: int  # most mutual nearest neighbours, or about the number of points in the grid
    dense: bool  # whether the source is also drawn warped onto the target
    pca: bool  # whether the features of both are also drawn

    @property
    def endings(self) -> list[str]:
        """Suffixes of the names of a target's output pictures."""
        return ["", *["_warped"] * self.dense, *["_features"] * self.pca]


@app.command()
def match_pictures(
    a: Annotated[Path, typer.Argument(metavar="A", readable=False, help="Source image.")],
    b: Annotated[Path, typer.Argument(metavar="B", readable=False, help="Target image, or folder of target images.")],
    points: Annotated[
        list[str] | None,
        Without("mutual"),
        typer.Option("--points", metavar="X,Y ...", help="Points in pixels of A; default: a grid over its object."),
    ] = None,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Find mutual nearest neighbours in place of given points.")
    ] = False,
    most: Annotated[
        int,
        Range(least=1, most=100_000),
        Without("points"),
        typer.Option(
            "--most", min=1, help="Largest number of mutual neighbours, or approximate number of grid points."
        ),
    ] = 30,
    dense: Annotated[bool, typer.Option("--dense", help="Also draw A warped onto B.")] = False,
    pca: Annotated[bool, typer.Option("--pca", help="Also draw the features of both images in colours.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Backbone, run_dir, or settings: 'backbone=dinov2 localise=argmax'.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", readable=False, help="Output folder.")] = Path("matches"),
    device: Annotated[
        str | None, DEVICE, typer.Option("--device", help="cpu or cuda; default: cuda if available.")
    ] = None,
    precision: Annotated[
        str, PRECISION, typer.Option("--precision", help="Precision of the backbone: 32, bf16 or 16.")
    ] = "32",
) -> None:
    """Find where points of A lie in B: a picture with numbers, and matches.json."""
    with report_user_errors("evaluate"):
        options = MatchOptions(_parse_points(points), mutual, most, dense, pca)
        from semcorr.data.pictures import list_pictures, load_picture, warn_about_frames

        print_line(f"Reading {a} and {b}")
        from semcorr.inference import Matcher
        from semcorr.inference.encoded import require_inside
        from semcorr.inference.load import format_overrides

        source, targets = load_picture(a), list_pictures(b) if b.is_dir() else [b]
        if not b.is_dir():
            load_picture(b)  # report a mistake before loading the network
        require_inside(options.points or [], source.size, source.name, "--points")
        output_stems = output_names(targets, options.endings)
        output_files = [f"{name}{ending}.png" for name in output_stems.values() for ending in options.endings]
        require_inputs_kept(out, [*output_files, "matches.json"], [a, *targets])
        require_output_dir(out)
        config_line = " ".join(format_overrides(model))
        print_line(f"Loading {config_line}")
        matcher = Matcher.load(model, device=device, precision=precision)
        with atomic_output_dir(out) as folder, warn_about_frames(b):
            summaries = [*draw_targets(matcher, source, output_stems, options, folder)]
            write_matches(folder / "matches.json", source, config_line, summaries)
            written = list_outputs(folder)  # `out` may hold other files, the pictures that were read among them
    for summary in summaries if len(summaries) == 1 else ():
        print_matches(summary)
    print_line(f"Wrote {out}: {', '.join(written)}")


def draw_targets(
    matcher: "Matcher", source: "Picture", targets: Mapping[Path, str], options: MatchOptions, folder: Path
) -> Iterator[JsonObject]:
    """Draw every target's matches into a folder, and yield each one's entry of the JSON file.

    Args:
        matcher: Matcher that finds the points.
        source: The source picture.
        targets: Names of the output pictures, without suffix, by the file of each target.
        options: Options of the command.
        folder: Folder of the output pictures.

    Raises:
        UserError: A target cannot be read, or points lie outside the source.
    """
    from semcorr.data.pictures import load_picture
    from semcorr.inference.encoded import parse_points
    from semcorr.store.encode import split_into_chunks
    from semcorr.visualization.predictions import save_plot

    encoded_source = matcher.encode(source)
    parse_points(options.points or [], encoded_source)  # report a mistake before computing anything
    pictures_text = "1 picture" if len(targets) == 1 else f"{len(targets)} pictures"
    with Stage(f"Matching {source.name} to {pictures_text} on {matcher.device}", len(targets)) as stage:
        for paths in split_into_chunks(list(targets), matcher.batch):
            pictures = [load_picture(path) for path in paths]
            for path, picture, target in zip(paths, pictures, matcher.encode_all(pictures), strict=True):
                matches = match_pair(matcher, encoded_source, target, options)
                for suffix, image in draw_outputs(
                    matcher, (source, picture), (encoded_source, target), matches, options
                ):
                    save_plot(image, folder / f"{targets[path]}{suffix}.png")
                stage.advance()
                yield match_to_dict(picture, matches, f"{targets[path]}.png")


def match_pair(matcher: "Matcher", a: "EncodedPicture", b: "EncodedPicture", options: MatchOptions) -> "Match":
    """Match the given points, mutual nearest neighbours, or a grid over the object.

    Args:
        matcher: Matcher that finds the points.
        a: The source picture.
        b: The target picture.
        options: Options of the command, which choose among the three.
    """
    from semcorr.inference.foreground import foreground_grid

    if options.mutual:
        return matcher.mutual(a, b, options.limit)
    points = options.points or foreground_grid(a, matcher.features(a, b)[0], options.limit)
    return matcher.match(a, b, points)


def draw_outputs(
    matcher: "Matcher",
    pictures: "tuple[Picture, Picture]",
    encoded_pictures: "tuple[EncodedPicture, EncodedPicture]",
    match: "Match",
    options: MatchOptions,
) -> "Iterator[tuple[str, Image]]":
    """Yield the suffix of its name and the image of every output.

    Args:
        matcher: Matcher that the flow and the features are of.
        pictures: Source and target.
        encoded_pictures: Both, encoded by the matcher.
        match: Matches of points of the source in the target.
        options: Options of the command, which choose the outputs.
    """
    from semcorr.inference import plots as draw_matches
    from semcorr.inference.displayed import displayed_size

    yield "", draw_matches.plot_matches(*pictures, match)
    if options.dense:
        a, b = encoded_pictures
        flow = matcher.dense(b, a, displayed_size(b.size))
        yield "_warped", draw_matches.plot_warp(*pictures, flow)
    if options.pca:
        yield "_features", draw_matches.plot_features(*pictures, encoded_pictures, matcher.features(*encoded_pictures))


def match_to_dict(target: "Picture", match: "Match", image: str) -> JsonObject:
    """Return the entry of a target in the JSON file.

    Args:
        target: The target picture.
        match: Matches of points of the source in the target.
        image: Name of the picture that shows them.
    """
    from semcorr.inference.matches import round_point

    columns = (match.source, match.points, match.scores, match.consistent)
    rows = zip(*(values.tolist() for values in columns), strict=True)
    return {
        "target": target.name,
        "size": list(target.size),
        "image": image,
        "matches": [
            {
                "number": i,
                "source": round_point(source),
                "target": round_point(point),
                "score": round(score, 4),
                "consistent": consistent,
            }
            for i, (source, point, score, consistent) in enumerate(rows, 1)
        ],
    }


def write_matches(path: Path, source: "Picture", config_line: str, summaries: Sequence[JsonObject]) -> None:
    """Write the matches of all targets to a JSON file.

    Args:
        path: The file.
        source: The source picture.
        config_line: The model's overrides, for the record.
        summaries: Entries of the targets, see `match_to_dict`.
    """
    content = {
        "model": config_line,
        "source": source.name,
        "size": list(source.size),
        "points": "x, y in original pixels, upright; pixel centres at integers",
        "targets": summaries,
    }
    write_json(path, content, "--out")


def print_matches(summary: JsonObject) -> None:
    """Print the matches of one target, one a line."""
    for match in summary["matches"]:
        (x, y), (u, v) = match["source"], match["target"]
        warning = "" if match["consistent"] else "   does not come back: do not trust it"
        print(f"{match['number']:3d}   {x:7.1f} {y:7.1f}  ->  {u:7.1f} {v:7.1f}   {match['score']:.2f}{warning}")


def output_names(paths: Sequence[Path], endings: Sequence[str] = ("",)) -> dict[Path, str]:
    """Return a unique name for the outputs of each path: its stem, or its name if stems collide.

    Args:
        paths: Files of the targets.
        endings: Suffixes of the names of each target's outputs, which must not collide either.
    """
    stems = Counter(path.stem for path in paths)
    candidates = [[path.stem, path.name] if stems[path.stem] == 1 else [path.name] for path in paths]
    return dict(zip(paths, unique_names(candidates, endings), strict=True))


def split_repeated_points(arguments: Sequence[str]) -> list[str]:
    """Split several points after one --points into one --points each, which is empty if none follows.

    >>> split_repeated_points(["a.jpg", "b.jpg", "--points", "120,80", "-0.5,3", "--dense"])
    ['a.jpg', 'b.jpg', '--points=120,80', '--points=-0.5,3', '--dense']
    >>> split_repeated_points(["a.jpg", "b.jpg", "--points"])
    ['a.jpg', 'b.jpg', '--points=']
    """
    words, previous, is_point = [], "", False
    for word in [*arguments, ""]:
        is_empty = previous == "--points" and (word.startswith("--") or not word)
        is_point = not is_empty and (previous == "--points" or (is_point and re.fullmatch(NUMBERS, word) is not None))
        words += ["--points="] * is_empty
        if is_point:
            words.append(f"--points={word}")
        elif word != "--points":
            words.append(word)
        previous = word
    return words[:-1]


def _parse_points(points: Sequence[str] | None) -> list[tuple[float, float]] | None:
    """Convert the values of --points, as `120,80`, to coordinates; None if there are none."""
    try:
        if any("_" in point for point in points or []):  # Python allows it within numbers
            raise ValueError
        return [(float(x), float(y)) for x, y in (point.split(",") for point in points)] if points else None
    except ValueError:
        text = " ".join(points or [])
        raise UserError(f"--points must be like 120,80 200,40, got {text!r}. Leave it out for a grid") from None


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr match`, and return its exit code."""
    return run_app(app, split_repeated_points(words), "semcorr match")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
