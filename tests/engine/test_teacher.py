"""A teacher of a training: what it computes by, what it follows, and what is left of it in a checkpoint."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module, build_training_parts
from semcorr.engine.checkpoints import read_checkpoint
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.rebuild import read_trained_config
from semcorr.engine.teacher import EMATeacher, Teacher
from semcorr.engine.trainer import build_user_callbacks
from semcorr.models.losses import LossInputs, MinedMatches, list_reads
from semcorr.train import train

pytestmark = pytest.mark.integration

LINE = ["loss=pseudo_labels", "callbacks=ema_teacher", "head=bottleneck", "finetune=blocks_1", "data.steps=3",
        "loss.threshold=0", "loss.cycle=null", "data.batch_size=2", "optimizer.lr=1e-2"]  # fmt: skip


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained, self.dropout = nn.Linear(3, 3), nn.Linear(3, 2), nn.Dropout(0.9)
        self.frozen.requires_grad_(False)
        self.loss = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(self.frozen(self.dropout(x)))


def change(student: Student) -> None:
    with torch.no_grad():
        for parameter in student.trained.parameters():
            parameter += 1.0


@pytest.mark.parametrize("half", [False, True], ids=["single", "autocast"])
def test_a_teacher_computes_by_its_own_weights_and_leaves_the_students_as_they_were(half):
    """Also under autocast, which keeps the converted weights of a step."""
    student, x = Student(), torch.randn(4, 3)
    teacher = Teacher(student)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        before = student.eval()(x)
    change(student)

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        own = student(x)
        with teacher.take_over(student.train()):
            taught = student(x)
        again = student.eval()(x)

    assert torch.equal(taught, before)
    assert torch.equal(own, again)
    assert not taught.requires_grad
    assert not torch.equal(own, taught)
    assert set(teacher.weights) == {"trained.weight", "trained.bias"}
    own.sum().backward()  # through weights that were away for a while
    expected = (x @ student.frozen.weight.T + student.frozen.bias).sum(0)
    torch.testing.assert_close(student.trained.weight.grad[0], expected, atol=0.1 if half else 1e-5, rtol=0.1)


def test_a_teacher_gives_the_weights_back_after_an_error():
    student = Student()
    teacher = Teacher(student)
    change(student)
    weights = student.trained.weight.clone()

    with pytest.raises(RuntimeError), teacher.take_over(student):
        raise RuntimeError

    assert torch.equal(student.trained.weight, weights)
    assert student.training


def test_a_teacher_is_the_moving_average():
    student, expected = Student(), []
    teacher, start = Teacher(student), student.trained.weight.detach().clone()
    for momentum in (0.5, 0.9, 0.0, 1.0):
        change(student)
        teacher.follow(student, momentum)
        start = momentum * start + (1 - momentum) * student.trained.weight.detach()
        expected.append(start)
        torch.testing.assert_close(teacher.weights["trained.weight"], start)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("momentum", "end"), [(0.5, None), (0.0, None), (1.0, None), (0.9, 1.0)])
def test_the_teacher_of_a_run_follows_its_steps(config, tiny, tmp_path, monkeypatch, momentum, end):
    """Every step of the optimiser moves it once; two batches make one."""
    seen: list[torch.Tensor] = []
    follow = Teacher.follow

    def noted(self: Teacher, module: nn.Module, share: float) -> None:
        name = next(name for name in self.weights if name.startswith("head."))
        expected = share * self.weights[name] + (1 - share) * module.get_parameter(name).detach()
        follow(self, module, share)
        torch.testing.assert_close(self.weights[name], expected)
        seen.append(share)

    monkeypatch.setattr(Teacher, "follow", noted)
    line = [*tiny, *LINE, f"callbacks.ema_teacher.momentum={momentum}", "data.steps=4", "trainer.max_epochs=1"]
    ending = f"callbacks.ema_teacher.momentum_end={'null' if end is None else end}"
    train(config("train", *line, ending, "trainer.accumulate_grad_batches=2"))

    saved = read_checkpoint(tmp_path / "run", "last")
    weights = saved["callbacks"]["EMATeacher"]["weights"]
    same = {name: torch.equal(weights[name], saved["state_dict"][name]) for name in weights}
    assert len(seen) == 2
    assert seen[0] == pytest.approx(momentum if end is None else (momentum + end) / 2)
    assert set(same.values()) == {momentum == 0.0}


@pytest.mark.slow
def test_a_resumed_run_has_the_teacher_that_it_had(config, tiny, tmp_path, monkeypatch):
    whole, line = tmp_path / "whole", [*tiny, *LINE, "trainer.max_epochs=2"]
    train(config("train", *line, f"run_dir={whole}"))
    steps, step = [], CorrespondenceModule.training_step

    def broken(module: CorrespondenceModule, batch) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 5:
            raise InterruptedError
        return step(module, batch)

    monkeypatch.setattr(CorrespondenceModule, "training_step", broken)
    cfg = config("train", *line)
    with pytest.raises(InterruptedError):
        train(cfg)
    cfg.checkpoint = cfg.run_dir
    train(cfg)

    first, second = (read_checkpoint(run, "last") for run in (whole, tmp_path / "run"))
    for key in ("callbacks", "state_dict"):
        a, b = (each[key]["EMATeacher"]["weights"] if key == "callbacks" else each[key] for each in (first, second))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_teacher_of_another_run_starts_from_its_weights(config, tiny, tmp_path):
    train(config("train", *tiny, *LINE, f"run_dir={tmp_path / 'first'}"))
    fixed = [f"callbacks.ema_teacher.run={tmp_path / 'first'}", "callbacks.ema_teacher.momentum=1"]
    train(config("train", *tiny, *LINE, *fixed, "callbacks.ema_teacher.momentum_end=null"))

    trained = read_checkpoint(tmp_path / "first", "best")["state_dict"]
    weights = read_checkpoint(tmp_path / "run", "last")["callbacks"]["EMATeacher"]["weights"]
    assert all(torch.equal(weights[name], trained[name]) for name in weights)

    with pytest.raises(UserError, match=r"`callbacks.ema_teacher.run`: its checkpoint has no head"):
        train(config("train", *tiny, *LINE, *fixed, "head.width=8", f"run_dir={tmp_path / 'other'}"))
    with pytest.raises(UserError, match=r"`callbacks.ema_teacher.run`: The checkpoint was trained on .* with weights"):
        train(config("train", *tiny, *LINE, *fixed, "seed=7", f"run_dir={tmp_path / 'base'}"))  # other random weights
    absent = f"callbacks.ema_teacher.run={tmp_path / 'absent'}"
    with pytest.raises(UserError, match=r"^`callbacks.ema_teacher.run`: .*absent.* does not exist"):
        train(config("train", *tiny, *LINE, absent, f"run_dir={tmp_path / 'none'}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "run"]  # nothing of the others was written


def test_a_loss_that_learns_from_a_teacher_needs_one(config, tiny, tmp_path):
    line = [each for each in LINE if not each.startswith("callbacks")]

    with pytest.raises(UserError, match=r"there is none. Give callbacks=ema_teacher as well"):
        train(config("train", *tiny, *line))
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_resumed_without_its_teacher_or_made_longer_stays_as_it_is(config, tiny, tmp_path):
    """Made longer it is not, where its teacher's momentum rises."""
    line = [*tiny, *LINE, "scheduler=constant", "data.steps=1", "trainer.max_epochs=1"]
    train(config("train", *line))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    resumed = config("train", *(each for each in line if not each.startswith("callbacks")))
    resumed.checkpoint = resumed.run_dir

    with pytest.raises(UserError, match=r"there is none. Give callbacks=ema_teacher as well"):
        train(resumed)
    longer = config("train", *(each for each in line if not each.startswith("trainer.max")), "trainer.max_epochs=2")
    longer.checkpoint = longer.run_dir
    with pytest.raises(UserError, match=r"teacher's momentum of this run was laid out for 1 steps, .* last for 2\."):
        train(longer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize("limit", ["2", "0.5"])
def test_a_limit_of_batches_is_that_of_the_steps_that_momentum_and_rate_are_laid_out_for(config, tiny, tmp_path, limit):
    line = [
        *tiny,
        *LINE,
        "scheduler=one_cycle",
        "data.steps=4",
        "trainer.max_epochs=1",
        f"+trainer.limit_train_batches={limit}",
    ]
    train(config("train", *line))
    again = config("train", *line)
    again.checkpoint = again.run_dir

    assert train(again)
    content = read_checkpoint(tmp_path / "run", "last")
    assert content["global_step"] == 2
    assert content["callbacks"]["EMATeacher"]["total_steps"] == content["lr_schedulers"][0]["total_steps"] == 2


def test_a_loss_that_learns_from_no_teacher_has_none(config, tiny, tmp_path, capsys):
    """As self-distillation that is switched off by its weight."""
    line = ["loss=distillation", "loss.weights.mined=0", "head=bottleneck", "data.steps=1", "data.batch_size=2"]
    train(config("train", *tiny, *line, "callbacks=ema_teacher", "trainer.max_epochs=1"))

    assert "No teacher: `loss` learns from none, so `callbacks.ema_teacher` does nothing." in capsys.readouterr().out
    assert "EMATeacher" not in read_checkpoint(tmp_path / "run", "last")["callbacks"]


def test_an_evaluation_has_no_teacher(config, tiny):
    with pytest.raises(UserError, match=r"`callbacks.ema_teacher` is a teacher, and nothing is trained here"):
        build_user_callbacks(config("evaluate", *tiny, "callbacks=ema_teacher"))


def test_the_weights_of_a_checkpoint_are_let_go_once_the_teacher_has_them():
    teacher, student = EMATeacher(), LightningModule()
    student.loss, student.backbone, student.teacher, student.head = MinedMatches(), nn.Identity(), None, nn.Linear(2, 2)
    weights = {name: torch.ones_like(value) for name, value in Teacher(student).weights.items()}
    teacher.load_state_dict({"weights": weights, "total_steps": 7})

    teacher.on_fit_start(Trainer(logger=False, enable_checkpointing=False), student)

    assert all(torch.equal(value, weights[name]) for name, value in student.teacher.weights.items())
    assert not any(value is weights for value in vars(teacher).values())


@pytest.mark.parametrize("loss", ["image_level", "pseudo_labels"])
def test_a_loss_of_pairs_is_not_for_steps_of_images(config, tiny, loss):
    with pytest.raises(UserError, match=r"`loss` compares both images of each pair.*data.all_pairs=3"):
        train(config("train", *tiny, f"loss={loss}", "callbacks=ema_teacher", "head=bottleneck", "data.all_pairs=3"))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "tuned"])
def test_the_teacher_sees_no_dropout(config, tiny, frozen):
    """A teacher equal to its student, whose features are dropped to a tenth: its own are those without."""
    line = [*tiny, *LINE, "finetune=frozen" if frozen else "finetune=blocks_1", "feature_dropout=0.9"]
    cfg = config("train", *line)
    module, data = build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))
    module.teacher, steps = Teacher(module), []
    module.log = lambda *args, **options: None
    loss, batch = module.loss.forward, next(iter(data.train_dataloader()))
    module.loss.forward = lambda step: steps.append(step) or loss(step)

    module.train().training_step(batch)

    (step,) = steps
    source, target = module.eval().pair_features(batch.source, batch.target)
    torch.testing.assert_close(step.teacher.source.values, module.head.transform(source).values)
    torch.testing.assert_close(step.teacher.target.values, module.head.transform(target).values)
    assert not torch.allclose(step.pairs.source.values, step.teacher.source.values)


def test_the_momentum_may_reach_its_end_before_the_training_does():
    whole, part = EMATeacher(0.9, 1.0), EMATeacher(0.9, 1.0, until=0.5)

    assert [part.momentum_at(step, 100) for step in range(50)] == [
        whole.momentum_at(2 * step, 100) for step in range(50)
    ]
    assert {part.momentum_at(step, 100) for step in (50, 70, 100)} == {1.0}


@pytest.mark.parametrize("head", ["bottleneck", "cats"])
def test_a_run_learns_from_mined_matches_beside_its_keypoints(config, tiny, tmp_path, monkeypatch, head):
    """Whichever head, by one choice; the matches of each step are on the objects of its pairs."""
    mined, original = [], MinedMatches.mine

    def noted(loss: MinedMatches, step: LossInputs):
        found = original(loss, step)
        mined.append((*found, step.teacher.masks[0]))
        return found

    monkeypatch.setattr(MinedMatches, "mine", noted)
    line = ["loss=distillation", "loss.terms.mined.least=10", "loss.terms.mined.agreement=0", f"head={head}"]
    train(config("train", *tiny, *line, "finetune=frozen", "data.steps=3", "data.batch_size=2", "trainer.max_epochs=1"))

    assert len(mined) == 3
    assert sum(int(mask.sum()) for _, _, mask, _ in mined) >= 10
    for source, _, mask, objects in mined:
        for points, counts, of_object in zip(source, mask, objects, strict=True):
            x, y = points[counts].long().unbind(-1)
            assert of_object[y, x].all()
    saved = read_checkpoint(tmp_path / "run", "last")
    assert "EMATeacher" in saved["callbacks"]
    assert read_trained_config(tmp_path / "run").loss.terms.mined.agreement == 0


def test_another_loss_of_keypoints_may_stand_beside_mined_matches(config, tiny):
    cfg = config("train", *tiny, "loss=distillation", "loss@loss.terms.keypoints=dense", "loss.weights.mined=0")

    loss = build_training_parts(cfg).loss

    assert {name: type(term).__name__ for name, term in loss.terms.items()} == {"keypoints": "SoftArgmaxDistance"}
    assert list_reads(loss) == []


def test_the_momentum_is_a_share():
    with pytest.raises(UserError, match="momentum` must be between 0 and 1"):
        EMATeacher(momentum=1.5)
