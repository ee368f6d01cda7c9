"""What Matcher is asked wrongly is a sentence, and loading it leaves no trace."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matched_pictures import drawn_cats, size_of
from PIL import Image
from saved_runs import save_run

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.inference.dense import parse_size
from semcorr.inference.encoded import iterate_pictures

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


@pytest.mark.parametrize("points", [[[1000, 3]], [[3, -1]], [[np.nan, 2]]])
def test_a_point_outside_is_refused_with_the_size_of_the_picture(random, cats, points):
    width, height = size_of(cats[0])
    with pytest.raises(UserError, match=f"outside .*{cats[0].name}, which is {width} x {height} pixels"):
        random.match(cats[0], cats[1], points)


@pytest.mark.parametrize("points", [[1, 2, 3], "here", [[1, 2, 3]], [["a", "b"]], [[1j, 2]], [[True, False]]])
def test_what_are_no_points_is_a_user_error(random, cats, points):
    with pytest.raises(UserError, match="must be rows of x and y"):
        random.match(cats[0], cats[1], points)


@pytest.mark.parametrize(
    ("points", "given"),
    [
        ("here", "'here'"),
        ([[1, 2], [3]], r"\[\[1, 2\], \[3\]\]"),
        (5, "5"),
        ([[1, 2, 3]], r"the shape \(1, 3\)"),
        ((row for row in [(1, 2)]), "generator. Give a list"),
        (zip([1], [2], strict=True), "zip. Give a list"),
        ({(1, 2)}, "set. Give a list"),
        (np.array([[1, 2], None], dtype=object), "an array of type object"),
    ],
)
def test_what_was_given_as_points_is_named(random, cats, points, given):
    with pytest.raises(UserError, match=rf"`points` must be rows of x and y, as \[\[120, 80\], .*\], got {given}"):
        random.match(cats[0], cats[1], points)


def test_several_points_are_no_point(random, cats):
    with pytest.raises(UserError, match=r"`point` must be x and y, as \(120, 80\), got the shape \(2, 2\)"):
        random.similarity(cats[0], cats[1], [(10, 20), (30, 40)])


def test_a_picture_with_nan_is_refused(random, cats):
    with pytest.raises(UserError, match=r"`a` holds NaN; floats must be from 0 to 1. Replace it"):
        random.match(np.full((5, 5), np.nan), cats[1], [])


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_not_fetched(random, cats, kind):
    with pytest.raises(UserError, match=r"https://x.y/a.png is an address, and nothing is fetched. Download it first"):
        random.match(cats[0], kind("https://x.y/a.png"), [])


MISTYPED = {
    "Matcher(m.module, 'sqash')": "`resize` must be one of squash, letterbox, corner or corner+PIXELS",
    "Matcher(m.module, None)": "`resize` must be one of squash, letterbox, corner or corner+PIXELS",
    "Matcher('tiny')": "`module` must be a CorrespondenceModule, got 'tiny'. Load one by its name, as Matcher.load(",
    "m.match(a, (a, a), [])": "`b` must be a picture or a list of pictures, got tuple. Give a list, as [b, c]",
    "m.match(a, iter([a]), [])": "`b` must be a picture or a list of pictures, got list_iterator. Give a list",
    "Matcher.load('tiny', device='cpu', trim='no')": "`trim` must be true or false, got 'no'",
    "Matcher.load('tiny', device='cpu', subcell='no')": "`subcell` must be true or false, got 'no'",
    "load_predictions([])": "`table` must be a pyarrow.Table, got list",
}
PROGRAM = """
import sys
import numpy
from semcorr import Matcher
from semcorr.metrics.predictions import load_predictions
m, a = Matcher.load("tiny", device="cpu"), numpy.ones((8, 8))
for call in sys.argv[1:]:
    try:
        eval(call)
        print("no error")
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
"""


def test_arguments_of_another_type_are_refused():
    """In a process without the type checks that the tests run under."""
    line = [sys.executable, "-c", PROGRAM, *MISTYPED]

    errors = subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()

    assert len(errors) == len(MISTYPED)
    for error, message in zip(errors, MISTYPED.values(), strict=True):
        assert error.startswith(f"UserError: {message}")


DENSE = torch.tensor([[3.0, 4.0], [5.0, 6.0]])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda values: values.to_sparse(), "must be a dense tensor, got a sparse_coo one"),
        (lambda values: values.to("meta"), "on the device meta has no values"),
        (lambda values: torch.quantize_per_tensor(values, 0.5, 0, torch.quint8), "got a quantised one"),
        (lambda values: np.ma.masked_greater(values.numpy(), 4), "a masked array holds values that are masked"),
    ],
)
def test_values_that_cannot_all_be_read_are_refused(random, cats, made, message):
    with pytest.raises(UserError, match=f"`points`.*{message}"):
        random.match(cats[0], cats[1], made(DENSE))
    with pytest.raises(UserError, match=f"`point`.*{message}"):
        random.similarity(cats[0], cats[1], made(DENSE)[1])
    with pytest.raises(UserError, match=f"`a`.*{message}"):
        random.match(made(DENSE), cats[1], [[0, 0]])


@pytest.mark.parametrize("kind", [">f4", ">i8", "u2", "f2", np.longdouble])
def test_points_may_be_of_any_real_type(random, cats, kind):
    rows = np.array([[20, 30], [40, 50]])

    assert torch.equal(
        random.match(cats[0], cats[1], rows.astype(kind)).points, random.match(cats[0], cats[1], rows).points
    )


@pytest.mark.parametrize("point", [None, 5, "30", np.float32(3)])
def test_a_point_is_x_and_y(random, cats, point):
    with pytest.raises(UserError, match=r"`point` must be x and y, as \(120, 80\), got "):
        random.similarity(cats[0], cats[1], point)


def test_an_empty_path_is_no_folder(random, cats):
    with pytest.raises(UserError, match="`a` is an empty path"):
        random.match("", cats[1], [])


def test_nothing_is_computed_on_meta():
    with pytest.raises(UserError, match="`device`: meta holds no values"):
        Matcher.load("tiny", device="meta")


@pytest.mark.parametrize("size", [8, 0, (), (8,), (0, 4), (8, 6, 3), (8.5, 6), "ab", (2**13, 2**13)])
def test_a_raster_is_of_two_whole_numbers(size):
    with pytest.raises(UserError, match="`size` must be a width and a height"):
        parse_size(size)


def test_a_raster_without_any_pixels_is_refused(random, cats):
    with pytest.raises(UserError, match="`size` must be a width and a height"):
        random.similarity(cats[0], cats[1], [3, 3], size=(0, 0))


@pytest.mark.parametrize("size", [[8, 6], np.array([8, 6]), torch.tensor([8, 6]), (n for n in (8, 6))])
def test_two_whole_numbers_may_come_in_any_form(size):
    assert parse_size(size) == (8, 6)


def test_points_may_be_any_view_of_an_array(random, cats):
    rows = np.array([[20.0, 30.0], [40.0, 50.0]])  # (row, column)
    rows.flags.writeable = False

    assert torch.equal(
        random.match(cats[0], cats[1], rows[:, ::-1]).points,
        random.match(cats[0], cats[1], [[30, 20], [50, 40]]).points,
    )


@pytest.mark.parametrize("kind", [str, Path, "pil", "array", "tensor", "grey", "encoded", "none"])
def test_one_picture_is_no_list_of_pictures(random, cats, kind):
    pixels = np.array(Image.open(cats[1]).convert("RGB"))
    made = {
        "pil": lambda: Image.fromarray(pixels),
        "array": lambda: pixels,
        "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
        "grey": lambda: pixels[..., 0],
        "encoded": lambda: random.encode(cats[1]),
        "none": lambda: None,
    }
    picture = made[kind]() if isinstance(kind, str) else kind(cats[1])

    with pytest.raises(UserError, match="`b`: give a list of pictures, got "):
        iterate_pictures(picture, "b")
    if kind in (str, "array", "tensor", "grey"):  # the tests check annotations, which allow these
        with pytest.raises(UserError, match="`image`: give a list of pictures, got "):
            list(random.encode_all(picture))
        with pytest.raises(UserError, match="`b`: give a list of pictures, got "):
            list(random.matches(cats[0], picture, [[3, 3]]))


def test_a_batch_of_arrays_is_a_list_of_pictures(random, cats):
    pixels = np.array(Image.open(cats[1]).convert("RGB"))

    assert len(list(random.encode_all(np.stack([pixels, pixels])))) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("backbone=tiny seed=5", "weights"),
        ("backbone=tiny backbone.size=128", r"size \(\d+, here 128\)"),
        ("backbone=tiny backbone.layers=[1]", "options"),
        ("backbone=tiny data.resize=corner", r"resize \(squash, here corner\)"),
        ("backbone=tiny head=bottleneck", "head"),
        ("backbone=efficientnet_lite0", "backbone"),
    ],
)
def test_what_another_matcher_encoded_is_refused(random, cats, line, message):
    other = Matcher.load(line, device="cpu")
    for ask in (lambda a, b: other.match(a, b, [[3, 3]]), other.dense, other.mutual, lambda a, b: other.features(b, a)):
        with pytest.raises(UserError, match=f"was encoded by another matcher, which differs in .*{message}"):
            ask(random.encode(cats[0]), cats[1])


def test_an_encoded_picture_serves_copies_of_its_matcher(random, cats):
    encoded = pickle.loads(pickle.dumps(random.encode(cats[0])))
    expected = random.match(cats[0], cats[1], [[3, 3]]).points
    for matcher in (copy.deepcopy(random), pickle.loads(pickle.dumps(random)), Matcher.load("tiny", device="cpu")):
        assert torch.equal(matcher.match(encoded, cats[1], [[3, 3]]).points, expected)


def test_the_most_matches_are_a_number_of_matches(random, cats):
    with pytest.raises(UserError, match="`most` must be a whole number of at least 0"):
        random.mutual(cats[0], cats[1], most=-1)


def test_an_opened_image_that_cannot_be_decoded_is_a_user_error(random, cats):
    closed, cut = Image.open(cats[0]), Image.open(io.BytesIO(cats[0].read_bytes()[:2000]))
    closed.close()
    for image in (closed, cut):
        with pytest.raises(UserError, match=r"is a PIL image that cannot be decoded \(.*\)\. Open"):
            random.match(image, cats[1], [[3, 3]])
    with pytest.raises(UserError, match="a is 0 x 5 pixels"):
        random.match(Image.new("RGB", (0, 5)), cats[1], [])


def test_no_points_have_no_matches(random, cats):
    match = random.match(cats[0], cats[1], [])

    assert match.points.shape == match.returned.shape == (0, 2)
    assert match.scores.shape == match.consistent.shape == (0,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dinov", "Did you mean .*dinov2"),
        ("runs/none", "nor a run directory"),
        ("backbone=tiny localise.windw=3", "localise.window"),
        ("backbone=tiny head=bottleneck head.widths=3", "Did you mean head.width"),
        ("backbone=nothing", "nothing"),
        ("checkpoint=nowhere", "nowhere"),
        ("bob's", "bob's is neither a directory nor a line of words"),
    ],
)
def test_a_model_that_there_is_not_is_a_user_error(line, message):
    with pytest.raises(UserError, match=message):
        Matcher.load(line)


@pytest.mark.parametrize("options", [{"device": "toaster"}, {"precision": "8"}, {"cycle": 0}, {"batch": 0}])
def test_options_that_there_are_not_are_a_user_error(options):
    with pytest.raises(UserError, match=f"`{next(iter(options))}`"):
        Matcher.load("tiny", **options)


def test_loading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Matcher.load("tiny", device="cpu")

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("before", [None, "7"])
def test_loading_leaves_the_environment_alone(monkeypatch, before):
    """Loaders of the caller's own training take their seeds from there."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    expected = dict(os.environ)
    Matcher.load("tiny", device="cpu")

    assert dict(os.environ) == expected


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "name", ["plain", "a b", "lr=1,x=2", "run(1)", "it's", "x{1}", "~x", "ümlaut", "$x", "${x}", "end\\", "mid\\'dle"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_loaded_whatever_its_directory_is_called(config, tmp_path, name, kind):
    save_run(config("evaluate", "backbone=tiny", "data.resize=corner"), tmp_path / name)

    assert Matcher.load(kind(tmp_path / name), device="cpu").resize == "corner"


def test_importing_semcorr_brings_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, semcorr; assert 'torch' not in sys.modules"], check=True)
