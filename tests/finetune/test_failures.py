"""No room outside a training pass: what is freed, what is halved or left out, and what ends the run."""

import weakref
from dataclasses import replace

import pytest
import torch

from finetune import run
from finetune.data.dataset import collate_utterances
from finetune.display import Display
from finetune.evaluate import evaluate
from finetune.failures import is_out_of_memory
from finetune.results import read_result
from finetune.run import finetune
from finetune.samples import Speaker
from finetune.tracking import speak_samples
from vallex.errors import TrainingError
from vallex.model.network import VALLE
from vallex.text import TextCollator

NO_ROOM = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 2.00 GiB"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("whatever it says"), True),
        (RuntimeError(NO_ROOM), True),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_out_of_memory_when_it_is_said_in_other_words_then_is_known(error, expected):
    assert is_out_of_memory(error) == expected


def test_run_of_both_stages_when_the_nar_is_set_up_then_nothing_holds_what_trained_the_ar(
    make_spec, make_config, monkeypatch, tmp_path
):
    held, alive = [], []
    set_up = run.set_up_stage

    def watch(stage, config, model, *rest):
        alive.append([reference() for reference in held])
        trainer = set_up(stage, config, model, *rest)
        kept = (model, trainer.optimizer, trainer.average, trainer.weights.trained[0])
        held.extend(weakref.ref(one) for one in kept)
        return trainer

    monkeypatch.setattr(run, "set_up_stage", watch)
    config = make_config(ar={"average": "ema"}, nar={"average": "ema"}, precision="bf16")
    spec = make_spec(tmp_path, config=config)
    finetune(spec, Display())
    assert alive == [[], [None] * 4]
    assert [reference() for reference in held] == [None] * 8  # before it is scored

    held.clear()
    alive.clear()
    run.plan(replace(spec, name="planned"), Display())
    assert alive == [[], [None] * 4]


def test_step_when_the_optimizer_has_no_room_then_the_run_ends_in_one_line(make_spec, monkeypatch, tmp_path):
    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError(NO_ROOM)

    monkeypatch.setattr(torch.optim.AdamW, "step", no_room)
    with pytest.raises(TrainingError, match=r"^out of memory \(CUDA out .*\)\. What .*: set grad") as caught:
        finetune(make_spec(tmp_path, stages=("ar",)), Display())
    assert "\n" not in str(caught.value)
    assert read_result(tmp_path / "run").error == str(caught.value)


def test_step_when_taken_then_its_gradients_take_no_memory_from_the_validation(
    make_spec, make_config, monkeypatch, tmp_path
):
    grads, forward = [], VALLE.forward

    def watch(self, *args, **kwargs):
        if not self.training:
            grads.extend(p.grad for p in self.parameters() if p.grad is not None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(VALLE, "forward", watch)
    finetune(make_spec(tmp_path, stages=("ar",)), Display())
    assert grads == []


@pytest.fixture
def room_for(monkeypatch):
    """Makes a device that has room for so many utterances in evaluation; returns the sizes that it saw."""

    def make(num_rows):
        sizes, forward = [], VALLE.forward

        def limited(self, batch, *args, **kwargs):
            if self.training:
                return forward(self, batch, *args, **kwargs)
            sizes.append(len(batch.text))
            if len(batch.text) > num_rows:
                raise RuntimeError("CUDA error: out of memory")
            return forward(self, batch, *args, **kwargs)

        monkeypatch.setattr(VALLE, "forward", limited)
        return sizes

    return make


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_validation_when_a_batch_has_no_room_then_its_halves_give_the_same_score(
    make_model, make_utterances, room_for, stage
):
    batch = collate_utterances(make_utterances("dora", [9, 20, 33, 41, 50]), TextCollator())
    whole = evaluate(make_model(), [batch], stage)
    sizes = room_for(2)
    halved = evaluate(make_model(), [batch], stage)
    assert sizes[0] == 5 and set(sizes[1:]) == {1, 2, 3}
    assert halved.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (halved.top1, halved.top10, halved.num_targets) == (whole.top1, whole.top10, whole.num_targets)


def test_validation_when_one_clip_has_no_room_then_it_is_named_before_training(make_spec, room_for, tmp_path):
    room_for(0)
    with pytest.raises(TrainingError, match=r"no room to validate 'dora_\d' of 0\.\d s alone; leave it out"):
        finetune(make_spec(tmp_path, stages=("ar",)), Display())
    assert read_result(tmp_path / "run").phases[0].steps == 0


def test_samples_when_there_is_no_room_then_are_left_out_and_the_run_goes_on(
    make_spec, make_config, monkeypatch, tmp_path, notes
):
    def no_room(*args):
        raise torch.OutOfMemoryError(NO_ROOM)

    class Mute(Speaker):
        def __init__(self):
            pass

        speak = no_room

    def speak(trainer):
        trainer.speaker = Mute()
        speak_samples(trainer)

    monkeypatch.setattr("finetune.train.speak_samples", speak)
    assert finetune(make_spec(tmp_path, stages=("ar",)), notes).status == "done"
    told = [line for line in notes.lines if "samples" in line]
    assert told[0].startswith("AR: samples of step 0 are missing, and training goes on: ")
    assert len(told) == 4
