"""Sets of layers score what an evaluation of them scores, and the beam keeps the best of them."""

import itertools
import random
from functools import partial

import pytest
import torch
from repository import SMALL

from semcorr import evaluate, search
from semcorr.data.synthetic import Synthetic
from semcorr.evaluation.layer_search import LayerSet, keep_pairs, search_beam

SEVERAL = {
    "tiny": ["backbone=tiny"],  # all on one grid
    "squeezenet": ["backbone=squeezenet", "backbone.size=64", "backbone.pretrained=false"],  # three strides
}


def score_by_table(table, sets):
    return [table[frozenset(layers)] for layers in sets]


def slow_beam(table, choices, width, most):
    """Written from the paper: grow every kept set by every layer, list by list."""
    kept, rounds = [[]], []
    for _ in range(most):
        grown = []
        for old in kept:
            for layer in choices:
                new = sorted([*old, layer])
                if layer not in old and new not in grown:
                    grown.append(new)
        if not grown:
            break
        grown.sort()
        ordered = []
        while grown:
            best = grown[0]
            for other in grown:
                if table[frozenset(other)] > table[frozenset(best)]:
                    best = other
            grown.remove(best)
            ordered.append(best)
        rounds.append(ordered)
        kept = ordered[:width]
    return rounds


@pytest.mark.parametrize(("width", "most"), [(1, 3), (2, 5), (4, 8), (64, 6)])
def test_a_beam_is_that_of_the_slow_loops(width, most):
    draw = random.Random(width)
    choices = [0, 2, 3, 7, 9, 11]
    subsets = itertools.chain.from_iterable(itertools.combinations(choices, k) for k in range(1, 7))
    table = {frozenset(subset): draw.choice([0.1, 0.2, 0.25, 0.3]) for subset in subsets}  # with ties

    found = [*search_beam(partial(score_by_table, table), choices, width, most)]

    assert [[[*one.layers] for one in sets] for sets in found] == slow_beam(table, choices, width, most)
    if width == 64:  # it holds all sets of a size, so that nothing is missed
        assert max(sets[0].score for sets in found) == max(table.values())
        assert sum(map(len, found)) == len(table)


def test_a_greedy_search_misses_what_a_wider_beam_finds():
    """1 is best alone, and 2 with 3 is best of all."""
    scores = {(1,): 5.0, (2,): 4.0, (3,): 1.0, (1, 2): 5.0, (1, 3): 6.0, (2, 3): 9.0}
    table = {frozenset(layers): value for layers, value in scores.items()}

    def best(width):
        rounds = search_beam(partial(score_by_table, table), [1, 2, 3], width, 2)
        return max((sets[0] for sets in rounds), key=lambda one: one.score)

    assert best(1) == LayerSet((1, 3), 6.0)
    assert best(2) == LayerSet((2, 3), 9.0)


def line(creatures, name):
    return ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "trainer=cpu", *SEVERAL[name]]


@pytest.mark.integration
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SEVERAL)
def test_a_set_scores_what_an_evaluation_of_its_layers_scores(creatures, config, tmp_path, name):
    """To the last digit, also where layers are on grids of their own, and of one layer alone."""
    cfg = search._compose([*line(creatures, name), "localise=argmax", "objective=pck.all.point.0.2"])

    found = [*search.run_search(cfg, 2, 2, None, limited=False)]

    last = 3 if name == "tiny" else 7
    assert sorted(one.layers for one in found[0]) == [(i,) for i in range(last + 1)]
    for layers, score in [*found[0][:2], *found[1][:2], found[1][-1]]:
        overrides = [*line(creatures, name), f"backbone.layers={[*layers]}", "data.split=val", "localise=argmax"]
        run = tmp_path / "-".join(map(str, layers))
        metrics = evaluate.evaluate(config("evaluate", *overrides, f"run_dir={run}"))
        assert score == metrics["pck"]["all"]["point"]["0.2"]
    assert len({one.score for one in found[0]}) > 1


@pytest.mark.integration
def test_the_line_that_is_printed_can_be_typed(creatures, config, monkeypatch, capsys):
    code = search.main(["layers", *line(creatures, "tiny"), "backbone.layers=[1,-1]"])
    *_, message = capsys.readouterr().out.splitlines()

    assert code == 0
    override = message.removeprefix("Use them by ")
    assert set(config("evaluate", "backbone=tiny", override).backbone.layers) <= {1, 3}


@pytest.mark.integration
@pytest.mark.parametrize(("overrides", "message"), [
    (["backbone=tiny", "head=bottleneck"], "`head` has weights"),
    (["backbone=tiny", "checkpoint=nowhere"], "nowhere"),
    (["backbone=tiny", "kap=true"], "`kap` has no effect"),
    (["backbone=tiny", "pose=adaptive"], "`pose` has no effect"),
    (["backbone=tiny", "backbone.layers=[0,9]"], "between -4 and 3"),
    (["backbone=tiny", "data.split=tst"], "got 'tst'"),
    (["backbone=tiny", "objective=pck.all.images.0.1"], "Did you mean pck.all.image.0.1"),
    (["backbone=hog"], "no layers to choose from"),
    (["backbone=tiny", "backbone.debias=3"], "change features of all layers together"),
    (["backbone=dino2"], "Did you mean dinov2"),
    (["backbone=squeezenet", "backbone.pretrained=false", "backbone.grid=16"], "have different grids"),
])  # fmt: skip
def test_a_search_that_cannot_be_is_refused_with_a_message(creatures, monkeypatch, capsys, overrides, message):
    typed = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "trainer=cpu", *overrides]
    code = search.main(["layers", *typed])
    output = capsys.readouterr().err

    assert code == 2
    assert message in output
    assert output.startswith("Error: ")
    assert output.count("\n") == 1


def test_pairs_are_kept_evenly(creatures):
    data = Synthetic(root=str(creatures), size=64, train=3, val=2, test=3, pixels=96)
    pairs = list(data.pairs("val"))
    keep_pairs(data, "val", None)
    keep_pairs(data, "val", 10_000)
    assert list(data.pairs("val")) == pairs
    keep_pairs(data, "val", 4)
    assert data.pairs("val") == [pairs[i * len(pairs) // 4] for i in range(4)]
    assert len(data.images_to_evaluate("val", 100)) <= 8
    assert len(data.pairs("test")) > 4  # the other splits are whole


@pytest.mark.parametrize("name", ["tiny", "squeezenet"])
def test_all_layers_that_are_offered_can_be_read(name, config):
    from semcorr.engine.build import build_backbone

    cfg = config("evaluate", *SEVERAL[name])
    choices = [*build_backbone(cfg, layers=[-1]).layer_choices]

    backbone = build_backbone(cfg, layers=choices)

    assert backbone.layers == choices
    assert len(backbone.read_maps(torch.zeros(1, 3, 64, 64)).values) == len(choices)
