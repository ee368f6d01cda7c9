"""Which cells of the papers the head comments of conf/experiment/ claim, for check_published.py."""

from published_claims import (
    AMBIGUOUS,
    AP10K,
    BASELINES,
    BENCHMARKS,
    BEST,
    CORRELATION_HEADS,
    FEATURE_HEADS,
    FOUR,
    GEO,
    LAST,
    METHODS,
    PASCAL,
    SIZES,
    STD,
    STEPS,
    TRAINED,
    ZERO_SHOT,
    Cell,
    Line,
    ablation,
    average,
    both,
    compare_frozen,
    geo,
    join,
    known,
    line,
    list_bare,
    list_best,
    list_readouts,
    list_sizes,
    readout,
    stage,
    tuned,
    unified,
)

MARCO = "MARCO (official weights, as measured by 3D-SC)"
POSES = ("L/R", "F/B", "L/R or F/B", "L/R/F/B")
NAMES = {"ResNet-101": "ResNet-101", "DINO": "DINOv1", "iBOT": "iBOT", "SD 2.1": "SD2-1", "DINOv2": "DINOv2"}
NAMES |= {"SD + DINOv2": "SD2-1+DINOv2"}

WITHOUT = ("nothing", "lora", "continuous", "annealing", "window", "mining", "everything")
TOP = ["top", "top_ablation", *(f"top_without/{part}" for part in WITHOUT)]

EXPERIMENTS: dict[str, list[Line]] = {
    "sweep_backbones": [
        [
            ("DINOv2-B (60 cells)", unified("V", "DINOv2 60", BEST)),
            ("(32 cells)", unified("V", "DINOv2 32", BEST)),
            ("(16 cells)", unified("V", "DINOv2 16", BEST)),
            ("DINO", unified("V", "DINOv1 60", BEST)),
            ("CLIP-L (16 cells)", unified("V", "CLIP 16", BEST)),
            ("ResNet-101", unified("V", "ResNet-101 60", BEST)),
        ]
    ],
    "sweep_blocks": [line("frozen", stage(0), "last block", stage(1), "last two", stage(2))],
    "sweep_resolution": [
        line("frozen", *(unified("V", f"DINOv2 {n}", BEST) for n in SIZES)),
        line("last block", *(unified("VI", f"DINOv2 {n}", BEST) for n in SIZES)),
    ],
    "sweep_windows": [
        line("zero-shot SD + DINOv2 argmax", readout("sd_dino", "argmax"), "window 5", readout("sd_dino", "window 5")),
        [
            (label, geo("5", STEPS[f"perturbation, {name}"], STD))
            for label, name in zip(
                ("trained, GeoAware whole map", "5", "9", "15"),
                ("soft", "window 5", "window 9", "window 15"),
                strict=True,
            )
        ],
    ],
    "marco": [line("all", known("spair test, all", "MARCO"), "geo, by others", known("spair test, geo", MARCO))],
    **{name: [line("ImCorr", known("spair test, all", "ImCorr"))] for name in TOP},
    "insid3": [
        line("without", known("spair test, all", "DINOv3-B, original", PASCAL)),
        line("debiased", known("spair test, all", "DINOv3-B, debiased (INSID3)", PASCAL)),
    ],
    "unified/no_head": list_bare(),
    "unified/bottleneck": list_sizes("bottleneck", "A1", "VIII"),
    "unified/self_attention": list_sizes("self_attention", "A1", "VIII"),
    "unified/cross_attention": list_sizes("cross_attention", "A1", "VIII"),
    "unified/match_to_match": list_sizes("match_to_match", "A2", "IX"),
    "unified/consensus": list_sizes("consensus", "A2", "IX"),
    "unified/cats": list_sizes("cats", "A2", "IX", sizes=(16, 32)),
    "unified/consensus_original": list_sizes("consensus_original", "A2", sizes=(16,)),
    "tables/unified_5": [
        *(line(label, *(unified("V", f"{name} {n}") for n in SIZES)) for label, name in NAMES.items()),
        line("CLIP", unified("V", "CLIP 16")),
    ],
    "unified/gated_layers": [line("DHPF", unified("II", "DHPF ResNet-101 240", ("0.05", "0.1", "0.15")))],
    "unified/hyperfeatures": [line("DHF", unified("II", "DHF SD+DINOv2 Ori", BEST))],
    "tables/unified_6": [
        line("DINOv2, last block", *(unified("VI", f"DINOv2 {n}") for n in SIZES)),
        line("SD-CPM", *(unified("VI", f"SD-CPM {n}") for n in SIZES)),
        line("SD-CPM + DINOv2", unified("VI", "SD-CPM+DINOv2 60")),
    ],
    "tables/unified_7": [
        line("none", stage(0), "1", stage(1), "2", stage(2)),
        line("3", stage(3), "4", stage(4), "5", stage(5)),
    ],
    "tables/unified_8": [line(head, *tuned("VIII", head, 60)) for head in FEATURE_HEADS],
    "tables/unified_9": [
        line(f"{cells} {head}" if head == "none" else head, *tuned("IX", head, cells))
        for cells in (60, 32)
        for head in CORRELATION_HEADS
        if (cells, head) != (60, "cats")
    ],
    "tables/unified_10": [[(each, unified("X", ZERO_SHOT, PASCAL, each)) for each in BENCHMARKS]],
    "tables/unified_11": [
        line(head, *(unified("XI", f"{name} DINOv2 840", PASCAL, each) for each in BENCHMARKS))
        for head, name in BASELINES.items()
    ],
    "tables/unified_12": [[(head, unified("XII", f"{name} 840", FOUR, "AP-10K")) for head, name in BASELINES.items()]],
    "tables/unified_a1": [line(head, *list_best("A1", head)) for head in FEATURE_HEADS],
    "tables/unified_a2": [
        *(line(head, *list_best("A2", head)) for head in CORRELATION_HEADS if head != "cats"),
        line("cats", *list_best("A2", "cats", (16, 32))),
        line("consensus_original", *list_best("A2", "consensus_original", (16,))),
    ],
    "tables/course_1": [
        line("DINOv2-B", unified("V", "DINOv2 60", BEST)),
        [
            ("the unified benchmark's protocol", average("DINOv2+NN")),
            ("DINOv3-B (probe3d's)", known("spair test, all, category", "DINOv3 B/16", BEST)),
        ],
    ],
    "tables/course_2": [line(join(*(stage(blocks, BEST) for blocks in (1, 2, 3, 4))))],
    "tables/course_3": [
        line("frozen SD+DINO argmax", readout("sd_dino", "argmax"), "window 5", readout("sd_dino", "window 5"))
    ],
    "tables/course_4": [
        [
            ("SD 2.1", unified("V", "SD2-1 60", BEST)),
            ("SD 2.1 and DINOv2 (frozen)", unified("V", "SD2-1+DINOv2 60", BEST)),
        ]
    ],
    "tables/geo_aware_1": [
        [(row, [(Cell(GEO, "1", row, column),) for column in POSES]) for row in ("DINOv2", "SD", "SD+DINO")]
    ],
    "tables/geo_aware_2": [
        [
            ("DINOv2+NN", average("DINOv2+NN")),
            ("DIFT", average("DIIFT")),
            ("SD+DINO", average("SD+DINO")),
            ("zero-shot", average("Ours-Zero-Shot")),
        ],
        [
            ("baseline", average(METHODS["baseline"])),
            ("perturbation", average(METHODS["perturbation"])),
            ("in the adapted pose", average(METHODS["adapted pose"])),
            ("pre-trained", average(LAST)),
        ],
    ],
    "tables/geo_aware_3": [
        line(label, *(geo("3", row, each) for each in ("SPair-71k", *AP10K)), geo("3", row, "PF-Pascal", PASCAL))
        for label, row in METHODS.items()
        if row != LAST
    ],
    "tables/geo_aware_4": [
        *(line(label, geo("4", row), geo("4", row, AP10K[0])) for label, row in METHODS.items() if row != LAST),
        line("pre-trained", geo("4", LAST)),
    ],
    "tables/geo_aware_5": [
        line(f"{label} all", geo("5", row, STD), "geo", geo("5", row, AMBIGUOUS)) for label, row in STEPS.items()
    ],
    "tables/geo_aware_7": list_readouts(),
    "tables/geo_aware_8": [
        [
            ("window 15", both(geo("8", "Default Window", ""), geo("3", LAST))),
            ("geo", geo("4", LAST)),
            ("a Gaussian kernel", geo("8", "Default Kernel", "")),
        ],
        *(
            [
                (f"best {row.lower()} at 0.01", geo("8", f"Best PCK@0.01 {row}", "")),
                ("at 0.05", geo("8", f"Best PCK@0.05 {row}", "")),
                ("at 0.1", geo("8", f"Best PCK@0.10 {row}", "")),
            ]
            for row in ("Window", "Kernel")
        ),
    ],
    "tables/geo_aware_9": [
        line("whole map", geo("9", "Soft Argmax", "")),
        *(line(f"window {size}", geo("9", f"Window Soft Argmax ({size})", "")) for size in (7, 15, 22)),
    ],
    "tables/geo_aware_10": [
        line(label, geo("10", METHODS[label]), geo("10", METHODS[label], AP10K[0])) for label in TRAINED
    ],
    "tables/geo_aware_11": [
        line(label, geo("11", METHODS[label], "PF-PASCAL", PASCAL), geo("11", METHODS[label], AP10K[0]))
        for label in TRAINED
    ],
    **{f"geo_aware/{method}": [compare_frozen(method)] for method in ("dinov2", "dift", "sd_dino", "zero_shot")},
    "geo_aware/baseline": [ablation("baseline, argmax")],
    "geo_aware/dense": [ablation("dense, argmax")],
    "geo_aware/pose_variant": [ablation("pose_variant, argmax")],
    "geo_aware/perturbation": [
        ablation("perturbation, argmax", "argmax all"),
        ablation("perturbation, soft", "soft-argmax all"),
        [
            *ablation("perturbation, window 15", "window soft-argmax of 15 all"),
            *(
                (size, geo("5", row, STD, BEST) + geo("5", row, AMBIGUOUS, BEST))
                for size, row in (("5", STEPS["perturbation, window 5"]), ("9", STEPS["perturbation, window 9"]))
            ),
        ],
    ],
    "geo_aware/released": [
        line("all", geo("3", "Ours"), "geo (window soft-argmax of 15)", geo("4", "Ours")),
    ],
}
