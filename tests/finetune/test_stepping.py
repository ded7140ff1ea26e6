"""What goes wrong in a step: no memory, numbers that are not finite. The run goes on, or says why not."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from finetune import probe, run_folder, stepping, trainer
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.results import read_result
from finetune.run import finetune, plan
from finetune.untouched import set_generators
from vallex.errors import TrainingError
from vallex.model.batch import Batch
from vallex.model.checkpoint import load_model, save_model
from vallex.model.network import VALLE


@pytest.fixture
def usual(make_spec, make_config, tmp_path):
    """A spec of a short AR run without what is drawn, so that two ways to one step can be compared."""

    def make(name="run", **settings):
        ar = {"dropout": 0.0, "max_steps": 4} | settings.pop("ar", {})
        return make_spec(tmp_path, name, config=make_config(ar=ar, **settings), stages=("ar",))

    return make


def out_of_memory_above(num_rows):
    """VALLE.forward on a device that has room for so many utterances in training."""
    original = VALLE.forward

    def forward(self, batch, *args, **kwargs):
        out = original(self, batch, *args, **kwargs)
        if self.training and torch.is_grad_enabled() and len(batch.text) > num_rows:
            out.loss.backward()  # as far as it came
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return out

    return forward


def test_step_when_memory_is_short_then_goes_on_in_parts_with_the_same_weights(
    usual, monkeypatch, read_weights, tmp_path, notes
):
    sgd = {"optimizer": "torch.SGD", "lr": 0.1}  # Adam makes much of gradients that are noise
    finetune(usual("whole", ar=sgd, max_batch_sec=4.0), Display())
    monkeypatch.setattr(VALLE, "forward", out_of_memory_above(1))
    finetune(usual("parts", ar=sgd, max_batch_sec=4.0), notes)
    assert any("is computed in 2 parts" in line for line in notes.lines)
    whole, parts = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("whole", "parts")
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0, msg=name)


def test_step_when_one_clip_has_no_room_then_says_its_length_and_what_to_do(usual, monkeypatch):
    monkeypatch.setattr(VALLE, "forward", out_of_memory_above(0))
    monkeypatch.setattr(
        probe, "_measure_batch", lambda trainer, cuts: probe._Pass(num_bytes=1, batch_sec=1, seconds=1)
    )
    with pytest.raises(
        TrainingError, match=r"at step 1 of the AR: no room for one clip alone; .* has \d\.\d s\. set grad"
    ):
        finetune(usual(), Display())


def test_probe_when_one_clip_has_no_room_then_says_so_before_training(usual, monkeypatch, tmp_path):
    monkeypatch.setattr(VALLE, "forward", out_of_memory_above(0))
    with pytest.raises(
        TrainingError, match=r"the AR has no room for one clip of \d\.\d s: set gradient_check"
    ):
        finetune(usual(), Display())
    assert read_result(tmp_path / "run").phases[0].steps == 0


@pytest.fixture
def poison(monkeypatch):
    """Makes the numbers of some steps infinite, in the output of one module."""

    def at(*steps, module="ar.decoder.layers.0"):
        seen, original = [], stepping._accumulate

        def accumulate(trainer, held):
            seen.append(None)
            hook = trainer.model.get_submodule(module).register_forward_hook(lambda *of: of[-1] * math.inf)
            if len(seen) not in steps:
                hook.remove()
            sums = original(trainer, held)
            if len(seen) not in steps:
                return sums
            trainer.display.poisoned = hook  # it stays until its fault was looked for
            return sums

        find = stepping._find_fault

        def find_and_heal(trainer, *rest):
            found = find(trainer, *rest)
            trainer.display.poisoned.remove()
            return found

        monkeypatch.setattr(stepping, "_accumulate", accumulate)
        monkeypatch.setattr(stepping, "_find_fault", find_and_heal)

    return at


def test_step_when_not_finite_then_is_left_out_and_told_and_saved(usual, poison, tmp_path, read_log, notes):
    poison(2)
    assert finetune(usual(), notes).status == "done"
    [told] = [line for line in notes.lines if "not finite" in line]
    assert "at step 2: first in the output of ar.decoder.layers.0." in told
    assert told.endswith("the step is left out (1 of 3)")
    [fault] = [line for line in read_log(tmp_path / "run") if line["kind"] == "fault"]
    assert (fault["step"], fault["where"]) == (2, "in the output of ar.decoder.layers.0")
    saved = torch.load(tmp_path / "run/faults/ar-step-2.pt", weights_only=True)
    batch = Batch(**saved["batches"][0])
    assert len(batch.ids) == len(batch.text)
    assert all(p.isfinite().all() for p in load_model(tmp_path / "run").state_dict().values())


def test_step_when_not_finite_then_leaves_weights_and_moments_as_they_were(
    usual, poison, tmp_path, read_weights
):
    finetune(usual("before", ar={"max_steps": 1, "schedule": "constant"}), Display())
    poison(2)
    finetune(usual("left", ar={"max_steps": 2, "schedule": "constant"}), Display())
    before, left = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("before", "left")
    )
    assert all(torch.equal(before[name], left[name]) for name in before)


def test_step_when_left_out_then_the_statistics_of_prenets_are_those_before_it(
    usual, poison, make_model, tmp_path, read_weights
):
    save_model(make_model(add_prenet=True), tmp_path / "init.safetensors")
    for name, steps in (("before", 1), ("left", 2)):
        if steps == 2:
            poison(2)
        spec = usual(name, ar={"max_steps": steps, "schedule": "constant"})
        finetune(replace(spec, init=tmp_path / "init.safetensors"), Display())
    before, left = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("before", "left")
    )
    assert any(name.endswith("running_mean") for name in before)
    assert [name for name in before if not torch.equal(before[name], left[name])] == []


def test_step_when_there_is_no_room_then_begins_again_with_the_same_draws_and_statistics(
    usual, monkeypatch, make_model, tmp_path
):
    save_model(make_model(add_prenet=True), tmp_path / "init.safetensors")
    begun, original = [], stepping._accumulate

    def accumulate(trainer, held):
        begun.append(torch.cat([trainer.draws.get_state(), torch.get_rng_state()]))
        begun.append(torch.cat([buffer.flatten().double() for buffer in trainer.model.buffers()]))
        return original(trainer, held)

    monkeypatch.setattr(stepping, "_accumulate", accumulate)
    monkeypatch.setattr(VALLE, "forward", out_of_memory_above(1))
    spec = usual(ar={"max_steps": 1, "accumulate": 1, "dropout": 0.2}, max_batch_sec=2.0)
    finetune(replace(spec, init=tmp_path / "init.safetensors"), Display())
    assert len(begun) >= 4
    for place in range(2, len(begun)):
        assert torch.equal(begun[place], begun[place - 2])


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_fault_when_saved_then_its_step_can_be_computed_once_more(
    make_spec, make_config, monkeypatch, tmp_path, stage
):
    sums, accumulate, normalize = [], stepping._accumulate, stepping._normalize

    def watch(trainer, held):
        sums.append(accumulate(trainer, held))
        return sums[-1]

    def fail_at_the_second(trainer, totals):
        norm, is_finite = normalize(trainer, totals)
        return norm, is_finite and len(sums) != 2

    monkeypatch.setattr(stepping, "_accumulate", watch)
    monkeypatch.setattr(stepping, "_normalize", fail_at_the_second)
    config = make_config(**{stage: {"max_steps": 2, "dropout": 0.2}})
    finetune(make_spec(tmp_path, config=config, stages=(stage,)), Display())

    saved = torch.load(tmp_path / f"run/faults/{stage}-step-2.pt", weights_only=True)
    model = load_model(tmp_path / f"run/checkpoints/{stage}-last.safetensors").train()
    model.set_dropout(0.2)
    played = SimpleNamespace(stage=stage, model=model, state=SimpleNamespace(num_parts=saved["num_parts"]))
    draws = torch.Generator()
    draws.set_state(saved["draws"])
    set_generators(saved["generators"], torch.device("cpu"))
    batches = [Batch(**batch) for batch in saved["batches"]]
    assert len(batches) == 2
    again = torch.zeros(())
    for part, codebook, prefix in stepping._parts(played, batches, draws):
        again = again + model(part, codebook, prefix=prefix).loss.detach()
    assert torch.equal(again, sums[1][0])


def test_fault_when_nothing_was_saved_and_the_disk_is_full_then_the_message_promises_neither(
    usual, poison, monkeypatch
):
    written = run_folder.atomic_write

    def full(path):
        if path.parent.name == "faults":
            raise OSError(28, "No space left on device")
        return written(path)

    monkeypatch.setattr(run_folder, "atomic_write", full)
    poison(1)
    with pytest.raises(TrainingError) as caught:
        finetune(usual(max_faults=0), Display())
    assert "Its batch could not be saved. The learning rate" in str(caught.value)
    assert str(caught.value).endswith("Nothing of the AR was saved yet: begin another run")


def test_fault_when_something_was_saved_then_the_command_that_it_names_goes_on_from_that(
    usual, poison, monkeypatch, tmp_path
):
    poison(3)
    with pytest.raises(TrainingError) as caught:
        finetune(usual(max_faults=0), Display())
    told = "What was saved at step 2 is whole; another run goes on from it: --resume-from run --name run-2"
    assert str(caught.value).endswith(f"{told} --runs {tmp_path} --set ar.lr=0.0001")
    monkeypatch.undo()
    spec = usual("run-2", max_faults=0, ar={"lr": 1e-4})
    assert finetune(spec, Display(), resume_from=tmp_path / "run").status == "done"


def test_gradients_when_infinite_at_any_scale_of_fp16_then_the_run_ends(
    usual, monkeypatch, tmp_path, read_log
):
    made, computed = trainer.make_accelerator, stepping._accumulate

    def make_scaling(*args, **settings):
        accelerator = made(*args, **settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return accelerator

    def accumulate(trainer, held):
        sums = computed(trainer, held)
        trainer.weights.trained[-1].grad.fill_(math.inf)
        return sums

    monkeypatch.setattr(trainer, "make_accelerator", make_scaling)
    monkeypatch.setattr(stepping, "_accumulate", accumulate)
    with pytest.raises(TrainingError, match=r"not finite at step 5.*fp16 overflowed; lower ar.lr"):
        finetune(usual(ar={"max_steps": 9}, max_faults=1), Display())
    # 4, 2 and 1 were looked for; what is below is counted
    assert [line["step"] for line in read_log(tmp_path / "run") if line["kind"] == "fault"] == [4, 5]


def test_step_in_fp16_when_only_another_process_reaches_what_is_trained_then_is_taken(
    usual, monkeypatch, tmp_path, read_log
):
    made = trainer.make_accelerator

    def make_scaling(*args, **settings):
        accelerator = made(*args, **settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return accelerator

    def accumulate(trainer, held):
        trainer.model.zero_grad(set_to_none=True)
        for parameter in trainer.weights.trained:
            parameter.grad = torch.zeros_like(parameter)  # as `sum_gradients` gives what others have computed
        return torch.ones_like(trainer.window)

    monkeypatch.setattr(trainer, "make_accelerator", make_scaling)
    monkeypatch.setattr(stepping, "_accumulate", accumulate)
    finetune(usual(ar={"max_steps": 2}), Display())
    assert [line["step"] for line in read_log(tmp_path / "run") if line["kind"] == "train"] == [1, 2]


def test_steps_when_too_many_are_not_finite_then_the_run_ends_and_can_go_on(usual, poison, tmp_path):
    poison(3, 4)
    spec = usual(max_faults=1)
    with pytest.raises(TrainingError, match=r"at step 4: .*\(max_faults=1 such steps are left out\)"):
        finetune(spec, Display())
    result = read_result(tmp_path / "run")
    assert (result.status, result.phases[0].last["step"]) == ("failed", 2)
    assert finetune(spec, Display(), resume=True).status == "done"


def test_weights_when_not_finite_then_no_step_is_left_out(usual, monkeypatch):
    def explode(kind, step, **_):
        return 1.0 if step != 1 else 1e45

    monkeypatch.setattr(stepping, "schedule_factor", explode)
    with pytest.raises(TrainingError, match=r"at step 3: first in the weights ar\."):
        finetune(usual(ar={"validate_every": 4}), Display())


@pytest.mark.parametrize(("free_gb", "batch_sec"), [(1000, probe.MAX_AUTO_SEC), (0.02, None), (1e-9, 1.0)])
def test_max_batch_sec_when_auto_then_is_what_memory_allows(
    usual, monkeypatch, tmp_path, notes, free_gb, batch_sec
):
    monkeypatch.setattr(probe, "_free_bytes", lambda trainer: int(free_gb * 1e9))
    assert finetune(usual(max_batch_sec=None), notes).status == "done"
    [told] = [line for line in notes.lines if line.startswith("AR: ") and "about" in line]
    found = float(told.split("batches of up to ")[1].split(" s;")[0])
    if batch_sec is None:
        assert 1.0 < found < probe.MAX_AUTO_SEC
    else:
        assert found == batch_sec


def test_plan_when_weights_lie_in_a_file_then_counts_them_and_averages_in_float64(usual, make_model):
    trained_bytes = sum(p.nbytes for p in make_model().ar.parameters())
    [plain] = plan(usual(), Display())
    [averaged] = plan(usual(ar={"average": "ema"}), Display())
    # weights, gradients, and two moments
    assert plain.memory_bytes > 4 * trained_bytes
    assert averaged.memory_bytes - plain.memory_bytes == 2 * trained_bytes


def test_run_when_auto_and_resumed_then_keeps_the_size_it_found(usual, monkeypatch, tmp_path, read_weights):
    for name, free_gb in (("once", 0.02), ("twice", 0.02)):
        monkeypatch.setattr(probe, "_free_bytes", lambda trainer, free_gb=free_gb: int(free_gb * 1e9))
        spec = usual(name, max_batch_sec=None)
        if name == "once":
            finetune(spec, Display())
            continue

        class Stop(Display):
            def stepped(self, step):
                if step == 2:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(spec, Stop())
        monkeypatch.setattr(probe, "_free_bytes", lambda trainer: 1)
        finetune(spec, Display(), resume=True)
    once, twice = (
        read_weights(tmp_path / name / "checkpoints/ar-last.safetensors") for name in ("once", "twice")
    )
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_batch_when_split_then_has_the_same_rows_without_needless_padding(tiny_prepared):
    from finetune.data.dataset import CodesDataset
    from vallex.text import TextCollator

    data = load_prepared(tiny_prepared)
    batch = CodesDataset(data.train, TextCollator())[range(len(data.train))]
    parts = batch.split(3)
    assert [name for part in parts for name in part.ids] == list(batch.ids)
    for part in parts:
        assert part.text.shape[1] == part.text_lens.max()
        assert part.codes.shape[1] == part.code_lens.max()
    row = parts[1]
    place = len(parts[0].ids)
    assert torch.equal(row.codes[0], batch.codes[place, : row.codes.shape[1]])
    assert torch.equal(row.language[0], batch.language[place, : row.language.shape[1]])
    assert batch.split(1) == [batch]
    assert len(batch.split(100)) == len(batch.ids)


def test_gradient_when_not_finite_then_its_own_parameter_is_told(usual, monkeypatch, read_log, tmp_path):
    original = stepping._accumulate

    def accumulate(trainer, held):
        sums = original(trainer, held)
        if trainer.state.step == 1:
            trainer.model.ar.audio_embedding.weight.grad[0, 0] = math.nan
        return sums

    monkeypatch.setattr(stepping, "_accumulate", accumulate)
    assert finetune(usual(), Display()).status == "done"
    [fault] = [line for line in read_log(tmp_path / "run") if line["kind"] == "fault"]
    assert fault["where"] == "in the gradient of ar.audio_embedding.weight"


def test_parts_when_of_the_nar_then_a_batch_has_one_codebook(tiny_prepared, make_model):
    from finetune.data.dataset import CodesDataset
    from vallex.text import TextCollator

    data = load_prepared(tiny_prepared)
    batch = CodesDataset(data.train, TextCollator())[range(len(data.train))]
    trainer = SimpleNamespace(stage="nar", model=make_model(), state=SimpleNamespace(num_parts=3))
    parts = list(stepping._parts(trainer, [batch] * 40, torch.Generator().manual_seed(1)))
    codebooks = [codebook for _, codebook, _ in parts]
    assert all(len(set(codebooks[place : place + 3])) == 1 for place in range(0, 120, 3))
    assert set(codebooks) == set(range(1, 8))
