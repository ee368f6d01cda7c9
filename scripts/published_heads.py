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
    average_figures,
    compare_frozen,
    geo_figures,
    join_figures,
    line,
    list_ablation,
    list_bare,
    list_best,
    list_readouts,
    list_sizes,
    readout,
    shared_figures,
    stage_figures,
    stored_figures,
    tuned_figures,
    unified_figures,
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
            ("DINOv2-B (60 cells)", unified_figures("V", "DINOv2 60", BEST)),
            ("(32 cells)", unified_figures("V", "DINOv2 32", BEST)),
            ("(16 cells)", unified_figures("V", "DINOv2 16", BEST)),
            ("DINO", unified_figures("V", "DINOv1 60", BEST)),
            ("CLIP-L (16 cells)", unified_figures("V", "CLIP 16", BEST)),
            ("ResNet-101", unified_figures("V", "ResNet-101 60", BEST)),
        ]
    ],
    "sweep_blocks": [line("frozen", stage_figures(0), "last block", stage_figures(1), "last two", stage_figures(2))],
    "sweep_resolution": [
        line("frozen", *(unified_figures("V", f"DINOv2 {n}", BEST) for n in SIZES)),
        line("last block", *(unified_figures("VI", f"DINOv2 {n}", BEST) for n in SIZES)),
    ],
    "sweep_windows": [
        line("zero-shot SD + DINOv2 argmax", readout("sd_dino", "argmax"), "window 5", readout("sd_dino", "window 5")),
        [
            (label, geo_figures("5", STEPS[f"perturbation, {name}"], STD))
            for label, name in zip(
                ("trained, GeoAware whole map", "5", "9", "15"),
                ("soft", "window 5", "window 9", "window 15"),
                strict=True,
            )
        ],
    ],
    "marco": [
        line(
            "all",
            stored_figures("spair test, all", "MARCO"),
            "geo, by others",
            stored_figures("spair test, geo", MARCO),
        )
    ],
    **{name: [line("ImCorr", stored_figures("spair test, all", "ImCorr"))] for name in TOP},
    "insid3": [
        line("without", stored_figures("spair test, all", "DINOv3-B, original", PASCAL)),
        line("debiased", stored_figures("spair test, all", "DINOv3-B, debiased (INSID3)", PASCAL)),
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
        *(line(label, *(unified_figures("V", f"{name} {n}") for n in SIZES)) for label, name in NAMES.items()),
        line("CLIP", unified_figures("V", "CLIP 16")),
    ],
    "unified/gated_layers": [line("DHPF", unified_figures("II", "DHPF ResNet-101 240", ("0.05", "0.1", "0.15")))],
    "unified/hyperfeatures": [line("DHF", unified_figures("II", "DHF SD+DINOv2 Ori", BEST))],
    "tables/unified_6": [
        line("DINOv2, last block", *(unified_figures("VI", f"DINOv2 {n}") for n in SIZES)),
        line("SD-CPM", *(unified_figures("VI", f"SD-CPM {n}") for n in SIZES)),
        line("SD-CPM + DINOv2", unified_figures("VI", "SD-CPM+DINOv2 60")),
    ],
    "tables/unified_7": [
        line("none", stage_figures(0), "1", stage_figures(1), "2", stage_figures(2)),
        line("3", stage_figures(3), "4", stage_figures(4), "5", stage_figures(5)),
    ],
    "tables/unified_8": [line(head, *tuned_figures("VIII", head, 60)) for head in FEATURE_HEADS],
    "tables/unified_9": [
        line(f"{cells} {head}" if head == "none" else head, *tuned_figures("IX", head, cells))
        for cells in (60, 32)
        for head in CORRELATION_HEADS
        if (cells, head) != (60, "cats")
    ],
    "tables/unified_10": [[(each, unified_figures("X", ZERO_SHOT, PASCAL, each)) for each in BENCHMARKS]],
    "tables/unified_11": [
        line(head, *(unified_figures("XI", f"{name} DINOv2 840", PASCAL, each) for each in BENCHMARKS))
        for head, name in BASELINES.items()
    ],
    "tables/unified_12": [
        [(head, unified_figures("XII", f"{name} 840", FOUR, "AP-10K")) for head, name in BASELINES.items()]
    ],
    "tables/unified_a1": [line(head, *list_best("A1", head)) for head in FEATURE_HEADS],
    "tables/unified_a2": [
        *(line(head, *list_best("A2", head)) for head in CORRELATION_HEADS if head != "cats"),
        line("cats", *list_best("A2", "cats", (16, 32))),
        line("consensus_original", *list_best("A2", "consensus_original", (16,))),
    ],
    "tables/course_1": [
        line("DINOv2-B", unified_figures("V", "DINOv2 60", BEST)),
        [
            ("the unified benchmark's protocol", average_figures("DINOv2+NN")),
            ("DINOv3-B (probe3d's)", stored_figures("spair test, all, category", "DINOv3 B/16", BEST)),
        ],
    ],
    "tables/course_2": [line(join_figures(*(stage_figures(blocks, BEST) for blocks in (1, 2, 3, 4))))],
    "tables/course_3": [
        line("frozen SD+DINO argmax", readout("sd_dino", "argmax"), "window 5", readout("sd_dino", "window 5"))
    ],
    "tables/course_4": [
        [
            ("SD 2.1", unified_figures("V", "SD2-1 60", BEST)),
            ("SD 2.1 and DINOv2 (frozen)", unified_figures("V", "SD2-1+DINOv2 60", BEST)),
        ]
    ],
    "tables/geo_aware_1": [
        [(row, [(Cell(GEO, "1", row, column),) for column in POSES]) for row in ("DINOv2", "SD", "SD+DINO")]
    ],
    "tables/geo_aware_2": [
        [
            ("DINOv2+NN", average_figures("DINOv2+NN")),
            ("DIFT", average_figures("DIIFT")),
            ("SD+DINO", average_figures("SD+DINO")),
            ("zero-shot", average_figures("Ours-Zero-Shot")),
        ],
        [
            ("baseline", average_figures(METHODS["baseline"])),
            ("perturbation", average_figures(METHODS["perturbation"])),
            ("in the adapted pose", average_figures(METHODS["adapted pose"])),
            ("pre-trained", average_figures(LAST)),
        ],
    ],
    "tables/geo_aware_3": [
        line(
            label,
            *(geo_figures("3", row, each) for each in ("SPair-71k", *AP10K)),
            geo_figures("3", row, "PF-Pascal", PASCAL),
        )
        for label, row in METHODS.items()
        if row != LAST
    ],
    "tables/geo_aware_4": [
        *(
            line(label, geo_figures("4", row), geo_figures("4", row, AP10K[0]))
            for label, row in METHODS.items()
            if row != LAST
        ),
        line("pre-trained", geo_figures("4", LAST)),
    ],
    "tables/geo_aware_5": [
        line(f"{label} all", geo_figures("5", row, STD), "geo", geo_figures("5", row, AMBIGUOUS))
        for label, row in STEPS.items()
    ],
    "tables/geo_aware_7": list_readouts(),
    "tables/geo_aware_8": [
        [
            ("window 15", shared_figures(geo_figures("8", "Default Window", ""), geo_figures("3", LAST))),
            ("geo", geo_figures("4", LAST)),
            ("a Gaussian kernel", geo_figures("8", "Default Kernel", "")),
        ],
        *(
            [
                (f"best {row.lower()} at 0.01", geo_figures("8", f"Best PCK@0.01 {row}", "")),
                ("at 0.05", geo_figures("8", f"Best PCK@0.05 {row}", "")),
                ("at 0.1", geo_figures("8", f"Best PCK@0.10 {row}", "")),
            ]
            for row in ("Window", "Kernel")
        ),
    ],
    "tables/geo_aware_9": [
        line("whole map", geo_figures("9", "Soft Argmax", "")),
        *(line(f"window {size}", geo_figures("9", f"Window Soft Argmax ({size})", "")) for size in (7, 15, 22)),
    ],
    "tables/geo_aware_10": [
        line(label, geo_figures("10", METHODS[label]), geo_figures("10", METHODS[label], AP10K[0])) for label in TRAINED
    ],
    "tables/geo_aware_11": [
        line(label, geo_figures("11", METHODS[label], "PF-PASCAL", PASCAL), geo_figures("11", METHODS[label], AP10K[0]))
        for label in TRAINED
    ],
    **{f"geo_aware/{method}": [compare_frozen(method)] for method in ("dinov2", "dift", "sd_dino", "zero_shot")},
    "geo_aware/baseline": [list_ablation("baseline, argmax")],
    "geo_aware/dense": [list_ablation("dense, argmax")],
    "geo_aware/pose_variant": [list_ablation("pose_variant, argmax")],
    "geo_aware/perturbation": [
        list_ablation("perturbation, argmax", "argmax all"),
        list_ablation("perturbation, soft", "soft-argmax all"),
        [
            *list_ablation("perturbation, window 15", "window soft-argmax of 15 all"),
            *(
                (size, geo_figures("5", row, STD, BEST) + geo_figures("5", row, AMBIGUOUS, BEST))
                for size, row in (("5", STEPS["perturbation, window 5"]), ("9", STEPS["perturbation, window 9"]))
            ),
        ],
    ],
    "geo_aware/released": [
        line("all", geo_figures("3", "Ours"), "geo (window soft-argmax of 15)", geo_figures("4", "Ours")),
    ],
}
