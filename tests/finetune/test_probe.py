"""What the probe counts and measures; the devices that it measures on are played."""

import pytest
import torch

from finetune import probe
from finetune.display import Display
from finetune.run import plan
from vallex.model.checkpoint import save_model


def test_probe_when_layers_are_computed_twice_then_counts_one_of_them_as_well(
    make_spec, make_config, make_model, tmp_path
):
    needed = {}
    for num_layers in (1, 8):
        init = tmp_path / f"{num_layers}.safetensors"
        save_model(make_model(num_layers=num_layers), init)
        for twice in (False, True):
            config = make_config(gradient_checkpointing=twice, max_batch_sec=8.0)
            [estimate] = plan(make_spec(tmp_path, init=init, config=config, stages=("ar",)), Display())
            needed[num_layers, twice] = estimate.memory_bytes
    # of one layer nothing is saved; of eight, most
    assert needed[1, True] > 0.99 * needed[1, False]
    assert needed[8, True] < 0.6 * needed[8, False]


def test_probe_on_a_gpu_then_measures_the_peak_of_a_second_pass(
    make_spec, make_config, monkeypatch, tmp_path
):
    told, allocated = [], iter([1000])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: told.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_001_000)
    measured, original = [], probe._loss

    def loss(trainer, batch):
        told.append("pass")
        return original(trainer, batch)

    def measure(trainer, batch):
        measured.append(probe._on_gpu(trainer, batch))
        assert all(p.grad is None for p in trainer.model.parameters())
        return measured[-1]

    monkeypatch.setattr(probe, "_loss", loss)
    monkeypatch.setattr(probe, "_by_counting", measure)
    monkeypatch.setattr(probe, "_training_bytes", lambda trainer: 0)
    config = make_config(max_batch_sec=1.0)
    [estimate] = plan(make_spec(tmp_path, config=config, stages=("nar",)), Display())
    assert told == ["pass", "synchronize", "reset", "pass", "synchronize"]
    assert measured[0][0] == 5_000_000
    assert estimate.memory_bytes == pytest.approx(5_000_000, rel=0.2)  # no share on top


def test_probe_when_a_pass_has_no_room_then_statistics_are_as_before(
    make_spec, make_config, make_model, monkeypatch, tmp_path
):
    save_model(make_model(add_prenet=True), tmp_path / "init.safetensors")
    seen, original = [], probe._backward

    def backward(model, loss):
        if not seen:
            seen.append([buffer.clone() for buffer in model.buffers()])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        seen.append([buffer.clone() for buffer in model.buffers()])
        original(model, loss)

    kept = []
    measured = probe._measure_batch

    def measure(trainer, rows):
        kept.append([buffer.clone() for buffer in trainer.model.buffers()])
        return measured(trainer, rows)

    monkeypatch.setattr(probe, "_backward", backward)
    monkeypatch.setattr(probe, "_measure_batch", measure)
    config = make_config(max_batch_sec=4.0)
    spec = make_spec(tmp_path, init=tmp_path / "init.safetensors", config=config, stages=("ar",))
    plan(spec, Display())
    before, after = kept
    assert any(not torch.equal(one, other) for one, other in zip(before, seen[0], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
