"""Names of cells of the papers, and the cells that docs/reproduce.md and published.json claim, for check_published.py.

Figures stand after a label, as read there: `line("16", A, B)` is a line whose figures A follow `16`, and B follow A.
"""

from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a paper's table."""

    paper: str
    table: str
    row: str
    column: str


Figures = list[tuple[Cell, ...]]  # one tuple for each figure, which has to be in all of its cells
Line = list[tuple[str, Figures]]

UNIFIED, GEO, SLIDES = "unified benchmark", "Telling Left from Right", "its slides"
JSON = "published.json (sources not in the folder)"
THREE, PASCAL, FOUR = ("0.01", "0.05", "0.1"), ("0.05", "0.1", "0.15"), ("0.01", "0.05", "0.1", "0.15")
BEST = ("0.1",)
SIZES = (16, 32, 60)
FEATURE_HEADS = {
    "none": "-",
    "bottleneck": "ResNet Bottleneck Block",
    "self_attention": "Self-Attention",
    "cross_attention": "Self+Cross Attention",
}
CORRELATION_HEADS = {"none": "-", "match_to_match": "Match2Match", "consensus": "NeighConsensus", "cats": "CATs"}
HEADS = FEATURE_HEADS | CORRELATION_HEADS | {"consensus_original": "NeighConsensus (Ori.)"}
BASELINES = {"none": "Ours(DINOv2)", "bottleneck": "Ours(DINOv2+ResNet)", "consensus": "Ours(DINOv2+NC)"}
METHODS = {
    "dinov2": "DINOv2+NN",
    "dift": "DIFT",
    "sd_dino": "SD+DINO",
    "zero_shot": "Ours-Zero-Shot",
    "baseline": "SD+DINO (S)",
    "perturbation": "Ours",
    "adapted pose": "Ours (Adapt. Pose)",
    "pre-trained": "Ours (AP-10K P.T.)",
}
READOUTS = {"argmax": "Argmax Inference (Default)", "soft": "Soft Argmax Inference"}
READOUTS |= {f"window {size}": f"Window Soft Argmax ({size})" for size in (3, 5, 11)}
STEPS = {
    "baseline, argmax": "Baseline",
    "dense, argmax": "Dense Training Objective",
    "pose_variant, argmax": "Pose-variant Augmentation",
    "perturbation, argmax": "Perturbation & Dropout",
    "perturbation, soft": "Soft Argmax Inference",
    **{f"perturbation, window {size}": f"Window Soft Argmax ({size})" for size in (5, 9, 15)},
}
TRAINED = ("baseline", "perturbation")
LAST = METHODS["pre-trained"]
STD, AMBIGUOUS = "SPair-71k (Std.)", "SPair-71k (Geo.)"  # Std. has the digits of all keypoints
AP10K = ("AP-10K-I.S.", "AP-10K-C.S.", "AP-10K-C.F.")
BENCHMARKS = ("SPair-71k", "PF-PASCAL", "PF-WILLOW")
ZERO_SHOT = "Ours SD+DINOv2 960, 840"


def list_figures(paper: str, table: str, row: str, benchmark: str, alphas: tuple[str, ...]) -> Figures:
    """Return one figure for each threshold."""
    return [(Cell(paper, table, row, f"{benchmark} {alpha}".strip()),) for alpha in alphas]


def shared_figures(*claims: Figures) -> Figures:
    """Return figures that are in several tables."""
    return [tuple(cell for cells in each for cell in cells) for each in zip(*claims, strict=True)]


def join_figures(*claims: Figures) -> Figures:
    """Return the figures of all, one after the other."""
    return [cells for each in claims for cells in each]


def line(*parts: str | Figures) -> Line:
    """Return the labels and figures of a line; figures without a label follow those before them."""
    label, labelled = "", []
    for part in parts:
        if isinstance(part, str):
            label = part
        else:
            labelled.append((label, part))
            label = ""
    return labelled


def unified_figures(table: str, row: str, alphas: tuple[str, ...] = FOUR, benchmark: str = "SPair-71k") -> Figures:
    """Return figures of the unified benchmark."""
    return list_figures(UNIFIED, table, row, benchmark, alphas)


def tuned_figures(tables: str, head: str, cells: int, alphas: tuple[str, ...] = FOUR) -> list[Figures]:
    """Return the figures of a head on the frozen and on the tuned backbone, which may be in several tables."""
    rows = [f"DINOv2 {state} {HEADS[head]} {cells}" for state in ("frozen", "tuned")]
    return [shared_figures(*(unified_figures(table, row, alphas) for table in tables.split())) for row in rows]


def geo_figures(table: str, row: str, benchmark: str = "SPair-71k", alphas: tuple[str, ...] = THREE) -> Figures:
    """Return figures of "Telling Left from Right"."""
    return list_figures(GEO, table, row, benchmark, alphas)


def average_figures(row: str) -> Figures:
    """Return the PCK@0.1 of all categories, of Table 2."""
    return [(Cell(GEO, "2", row, "All"),)]


def stored_figures(part: str, method: str, alphas: tuple[str, ...] = THREE) -> Figures:
    """Return figures whose paper is not in the folder, as published.json has them."""
    return list_figures(JSON, part, method, "", alphas)


def list_best(table: str, head: str, sizes: tuple[int, ...] = SIZES) -> list[Figures]:
    """Return PCK@0.1 on the frozen and on the tuned backbone, for each size."""
    return [join_figures(*tuned_figures(table, head, n, BEST)) for n in sizes]


def list_sizes(head: str, tables: str, last: str = "", sizes: tuple[int, ...] = SIZES) -> list[Line]:
    """List the lines of one head of the unified benchmark; Table `last` has its figures at 60 cells only."""
    return [line(str(n), *tuned_figures(f"{tables} {last if n == 60 else ''}", head, n)) for n in sizes]


def list_bare() -> list[Line]:
    """List the lines of the unified benchmark's network without a head, which are in most of its tables."""
    lines = []
    for cells in SIZES:
        frozen, last = tuned_figures("A1 A2" + " IX" * (cells > 16) + " VIII" * (cells == 60), "none", cells)
        frozen, last = (
            shared_figures(frozen, unified_figures("V", f"DINOv2 {cells}")),
            shared_figures(last, unified_figures("VI", f"DINOv2 {cells}")),
        )
        if cells == 60:
            frozen, last = (
                shared_figures(frozen, unified_figures("VII", "DINOv2 - 60")),
                shared_figures(last, stage_figures(1)),
            )
        two = line("last two blocks", stage_figures(2)) if cells == 60 else []
        lines.append(line(str(cells), frozen, last) + two)
    return lines


def stage_figures(blocks: int, alphas: tuple[str, ...] = FOUR) -> Figures:
    """Return the figures with the last blocks tuned; no block is the frozen network."""
    return unified_figures("VII", f"DINOv2 {f'stage{13 - blocks}' if blocks else '-'} 60", alphas)


def list_ablation(step: str, label: str = "all") -> Line:
    """Return all, after a label, and geo of a row of Table 5; the whole method's is in Tables 3 and 4, too."""
    overall, subset = geo_figures("5", STEPS[step], STD), geo_figures("5", STEPS[step], AMBIGUOUS)
    if step == "perturbation, window 15":
        overall, subset = (
            shared_figures(overall, geo_figures("3", "Ours")),
            shared_figures(subset, geo_figures("4", "Ours")),
        )
    return line(label, overall, "geo", subset)


def compare_frozen(method: str) -> Line:
    """Return all and geo of a frozen method, in Tables 3 and 4, and 7 where it is there."""
    overall, subset = [geo_figures("3", METHODS[method])], [geo_figures("4", METHODS[method])]
    if method in ("sd_dino", "zero_shot"):
        overall.append(readout(method, "argmax", STD))
        subset.append(readout(method, "argmax", AMBIGUOUS))
    return line("all", shared_figures(*overall), "geo", shared_figures(*subset))


def readout(method: str, name: str, benchmark: str = STD, alphas: tuple[str, ...] = THREE) -> Figures:
    """Return figures of Table 7."""
    return geo_figures("7", f"{METHODS[method].replace('Zero-Shot', 'zero-shot')} {READOUTS[name]}", benchmark, alphas)


def list_readouts() -> list[Line]:
    """List the lines of Table 7; of one row the geometry-aware half is not written down."""
    lines = []
    for method in ("sd_dino", "zero_shot"):
        for name in READOUTS:
            parts: list[str | Figures] = [f"{method}, {name}", readout(method, name)]
            if (method, name) != ("sd_dino", "soft"):
                parts.append(readout(method, name, AMBIGUOUS))
            if (method, name) == ("zero_shot", "window 5"):
                near = [readout(method, other, alphas=BEST) for other in ("window 5", "window 3", "window 11")]
                parts += [near[0], "its neighbours are", near[1], "and", near[2]]
            lines.append(line(*parts))
    return lines


PAGE: dict[str, Line] = {  # the first column of docs/reproduce.md's tables -> its published figures
    "V, backbones as they are": [
        ("SD 2.1 + DINOv2", unified_figures("V", "SD2-1+DINOv2 60", BEST)),
        ("DINOv2", unified_figures("V", "DINOv2 60", BEST)),
        ("SD 2.1", unified_figures("V", "SD2-1 60", BEST)),
    ],
    "VI, backbones trained": [
        ("DINOv2", unified_figures("VI", "DINOv2 60", BEST)),
        ("SD-CPM", unified_figures("VI", "SD-CPM 60", BEST)),
    ],
    "VII, how many blocks": line("1 to 5", *(stage_figures(blocks, BEST) for blocks in (1, 2, 3, 4, 5))),
    "VIII, feature heads": [
        ("frozen (self-attention)", tuned_figures("VIII", "self_attention", 60, BEST)[0]),
        ("tuned (bottleneck)", tuned_figures("VIII", "bottleneck", 60, BEST)[1]),
    ],
    "IX, correlation heads": [
        ("frozen", tuned_figures("IX", "consensus", 60, BEST)[0]),
        ("tuned", tuned_figures("IX", "consensus", 60, BEST)[1]),
    ],
    "X, zero-shot": [(each, unified_figures("X", ZERO_SHOT, BEST, each)) for each in BENCHMARKS],
    "XI, strong baseline": [
        ("", unified_figures("XI", "Ours(DINOv2) DINOv2 840", BEST)),
        ("PF-PASCAL", unified_figures("XI", "Ours(DINOv2) DINOv2 840", BEST, "PF-PASCAL")),
        ("PF-WILLOW", unified_figures("XI", "Ours(DINOv2) DINOv2 840", BEST, "PF-WILLOW")),
        ("bottleneck", unified_figures("XI", "Ours(DINOv2+ResNet) DINOv2 840", BEST)),
    ],
    "XII, AP-10K": [("within species", unified_figures("XII", "Ours(DINOv2) 840", BEST, "AP-10K"))],
    "A1, feature heads, 3 sizes": line(
        "tuned bottleneck at 16, 32, 60 cells", *(tuned_figures("A1", "bottleneck", n, BEST)[1] for n in SIZES)
    ),
    "A2, correlation heads, 3 sizes": line(
        "tuned consensus at 16, 32, 60 cells", *(tuned_figures("A2", "consensus", n, BEST)[1] for n in SIZES)
    ),
    "1, pose prediction": [(row, [(Cell(GEO, "1", row, "L/R/F/B"),)]) for row in ("DINOv2", "SD", "SD+DINO")],
    "2, SPair-71k by category": [
        ("", average_figures("Ours")),
        ("adapted", average_figures(METHODS["adapted pose"])),
        ("pre-trained", average_figures(LAST)),
        ("zero-shot", average_figures("Ours-Zero-Shot")),
    ],
    "3, three benchmarks": [
        ("", geo_figures("3", "Ours", alphas=BEST)),
        ("AP-10K", join_figures(*(geo_figures("3", "Ours", each, BEST) for each in AP10K))),
        ("PF-PASCAL", geo_figures("3", "Ours", "PF-Pascal", BEST)),
    ],
    "4, geometry-aware subset": [
        ("geo", geo_figures("4", "Ours", alphas=BEST)),
        ("AP-10K", geo_figures("4", "Ours", AP10K[0], BEST)),
    ],
    "5, ablation": [
        *(("", geo_figures("5", row, STD, BEST)) for row in list(STEPS.values())[:4]),
        ("window", geo_figures("5", STEPS["perturbation, window 15"], STD, BEST)),
    ],
    "7, readouts, zero-shot": [(name, readout("zero_shot", name, alphas=BEST)) for name in ("argmax", "window 11")],
    "8, window or kernel": [
        (row.lower(), geo_figures("8", f"Default {row}", "", BEST)) for row in ("Window", "Kernel")
    ],
    "9, window in the loss": [
        *(
            (label, geo_figures("9", f"Window Soft Argmax ({size})", "", BEST))
            for label, size in (("window 7", 7), ("15", 15), ("22", 22))
        ),
        ("whole map", geo_figures("9", "Soft Argmax", "", BEST)),
    ],
    "10, from PF-PASCAL": [
        ("SPair-71k", geo_figures("10", "Ours", alphas=BEST)),
        ("AP-10K", geo_figures("10", "Ours", AP10K[0], BEST)),
    ],
    "11, from SPair-71k": [
        ("PF-PASCAL", geo_figures("11", "Ours", "PF-PASCAL", BEST)),
        ("AP-10K", geo_figures("11", "Ours", AP10K[0], BEST)),
    ],
    "1, frozen": [("DINOv2-B (unified benchmark)", unified_figures("V", "DINOv2 60", BEST))],
    "2, last layers": [
        *line("DINOv2-B, 1 to 4 blocks", *(stage_figures(blocks, BEST) for blocks in (1, 2, 3))),
        ("(unified benchmark)", stage_figures(4, BEST)),
    ],
    "3, window soft-argmax": [
        ("SD+DINO", readout("sd_dino", "argmax", alphas=BEST)),
        ("argmax", readout("sd_dino", "window 5", alphas=BEST)),
    ],
}

JSON_PAPERS = {"unified": UNIFIED, "preprint": GEO, "slides": SLIDES}  # as the rows of published.json name them
LISTED = "II III IV X XI"  # tables of several benchmarks
JSON_COLUMNS = {  # a part of published.json -> its columns in the papers, each with the tables that have it
    "spair test, all": {"SPair-71k": f"{LISTED} V VI VII VIII IX A1 A2 3 10"},
    "spair test, geo": {"SPair-71k": "4"},
    "spair test, all, point": {"All": "2"},
    "pf_pascal test, all": {"PF-PASCAL": f"{LISTED} 11", "PF-Pascal": "3"},
    "pf_willow test, all": {"PF-WILLOW": LISTED},
    "pf_willow test, all, not stated": {"PF-WILLOW (first)": LISTED},
    "ap10k test, all": {AP10K[0]: "3 10 11", "AP-10K": "XII"},
    "ap10k test, geo": {AP10K[0]: "4"},
    "ap10k test_cross_species, all": {AP10K[1]: "3"},
    "ap10k test_cross_family, all": {AP10K[2]: "3"},
}
JSON_COMPLETE = {
    UNIFIED: f"{LISTED} V VI VII VIII IX XII A1 A2",
    GEO: "3 4 10 11",
    SLIDES: "3 4",
}  # every figure is there
