"""Laws of training on recorded passes. Without a GPU a stand-in records: it keeps scores and gradients where CUDA graphs do.

Not here: the loop (test_training.py), accumulation itself (test_modern.py).
"""

from __future__ import annotations

import pytest
import torch

from jointseg import hardware
from jointseg.batches import Place
from jointseg.config import Config
from jointseg.errors import InputError
from jointseg.resuming import begin
from jointseg.settings import with_overrides
from jointseg.stages import STAGES
from jointseg.training import train
from tests.trainings import ALONE

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def recorded(monkeypatch):
    """Stands for `make_graphed_callables`: each replay overwrites the last one's scores and gradients. What was recorded."""
    made = []

    def recording(module, images, *, allow_unused_input):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        eager, kept = module.forward, {}

        def store(name, tensors):
            for held, tensor in zip(kept.setdefault(name, [torch.empty_like(t) for t in tensors]), tensors, strict=True):
                held.copy_(tensor)
            return tuple(held.detach() for held in kept[name])

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, image, *_):
                with torch.enable_grad():
                    ctx.scores = eager(image)
                return store("scores", [scores.detach() for scores in ctx.scores])

            @staticmethod
            def backward(ctx, *grads):
                return None, *store("gradients", torch.autograd.grad(ctx.scores, parameters, grads))

        torch.randn(7)  # recording draws from the random state
        module.forward = lambda image: Replay.apply(image, *parameters)
        made.append((module, images))
        return module

    monkeypatch.setattr("torch.cuda.make_graphed_callables", recording)
    monkeypatch.setattr("jointseg.resuming.refuse_where_there_are_no_graphs", lambda place: None)
    return made


def fit(config, rooms, views, stage, *, place=ALONE, validation=()):
    run = begin(config, STAGES[stage], place=place, start=None)
    reports = []
    train(run, rooms, views, place=place, report=reports.append, validation=validation)
    return run, [{name: value for name, value in one.metrics.items() if name != "images_per_second"} for one in reports]


@pytest.mark.parametrize(("stage", "accumulate"), [("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2), ("stage2", 3)])
def test_replayed_passes_train_as_others_do_to_the_bit(recorded, rooms, views, small, stage, accumulate):  # noqa: PLR0917
    plain = with_overrides(small, {f"{stage}.iterations": 3, f"{stage}.accumulate": accumulate})
    graphs = with_overrides(plain, {"training.cuda_graphs": True})
    (one, losses), (other, replayed) = (
        fit(config, rooms, views, stage, validation=rooms.train[:1]) for config in (plain, graphs)
    )
    assert replayed == losses
    assert len(losses) == 3
    weights = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    ((module, (image,)),) = recorded
    assert module.training
    assert (tuple(image.shape), image.dtype) == ((2, 3, 65, 65), torch.uint8)


def test_replayed_passes_keep_their_precision(recorded, rooms, views, small, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)  # a processor that is not made for it computes it, too
    plain = with_overrides(small, {"training.precision": "bfloat16", "stage2.iterations": 3})
    graphs = with_overrides(plain, {"training.cuda_graphs": True})
    assert fit(graphs, rooms, views, "stage2")[1] == fit(plain, rooms, views, "stage2")[1]
    assert len(recorded) == 1


def test_a_stage_with_the_crf_records_nothing(recorded, rooms, views, small):
    plain = with_overrides(small, {"stage3.iterations": 1})
    graphs = with_overrides(plain, {"training.cuda_graphs": True})
    assert fit(graphs, rooms, views, "stage3")[1] == fit(plain, rooms, views, "stage3")[1]
    assert recorded == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.compile": True}, r"^training\.cuda_graphs: true is not allowed with training\.compile=true$"),
        ({"training.recompute": True}, r"^training\.cuda_graphs: true is not allowed with training\.recompute=true$"),
        (
            {"data.cache_features": True, "network.frozen_until": "conv4_3"},
            r"^training\.cuda_graphs: true is not allowed with data\.cache_features=true$",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        with_overrides(Config(), {**changes, "training.cuda_graphs": True})


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (ALONE, "training.cuda_graphs: true needs a GPU; the device is cpu"),
        (Place(1, 2, torch.device("cuda")), "training.cuda_graphs: true needs one worker; training has 2"),
    ],
)
def test_where_there_are_no_graphs_is_said(small, place, said):
    with pytest.raises(InputError) as error:
        begin(with_overrides(small, {"training.cuda_graphs": True}), STAGES["stage1"], place=place, start=None)
    assert str(error.value) == said


@ON_CUDA
@pytest.mark.parametrize(("stage", "accumulate"), [("stage1", 1), ("stage2", 1), ("stage2", 3)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_graphs_train_as_single_launches_do(rooms, views, small, stage, accumulate, precision):  # noqa: PLR0917
    changes = {f"{stage}.iterations": 6, f"{stage}.accumulate": accumulate, "training.precision": precision}
    plain = with_overrides(small, {**changes, "network.dropout": 0, "training.channels_last": precision == "bfloat16"})
    graphs = with_overrides(plain, {"training.cuda_graphs": True})
    place = Place(device=torch.device("cuda"))
    (_, losses), (_, replayed) = (fit(config, rooms, views, stage, place=place) for config in (plain, graphs))
    assert [row["loss/total"] for row in replayed] == pytest.approx([row["loss/total"] for row in losses], rel=2e-3)


@ON_CUDA
def test_what_drops_out_differs_from_replay_to_replay_and_recording_draws_nothing(rooms, views, small):
    config = with_overrides(small, {"training.cuda_graphs": True, "stage1.iterations": 3, "stage1.lr": 1e-30})
    place = Place(device=torch.device("cuda"))
    same_view = [views[0]]
    _, rows = fit(config, rooms, same_view, "stage1", place=place)
    assert len({row["loss/total"] for row in rows}) == 3
    assert fit(config, rooms, same_view, "stage1", place=place)[1] == rows
