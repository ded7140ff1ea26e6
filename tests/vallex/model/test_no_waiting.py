"""A pass waits for no device. Torch's device "meta" has no values: who asks for one gets an error."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vallex.model.batch import Batch
from vallex.model.prefix import NarPrefix, draw_prefix

SIZES = [(4, 21), (6, 30), (5, 17)]


class NoWaiting(TorchDispatchMode):
    """Refuses to look at a value, and to bring one to the device so that the host waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            assert kwargs.get("non_blocking"), "copied to the device, and waited for"
        return func(*args, **kwargs)


@pytest.fixture
def no_waiting(monkeypatch):
    """A mode in which nothing may be asked of a device."""

    def refused(*args, **kwargs):
        raise AssertionError("a tensor made of numbers is copied to its device, and waited for")

    for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
        monkeypatch.setattr(owner, name, refused)
    return NoWaiting()


@pytest.fixture
def host_batch(make_batch):
    prompts = {"prompt_codes": torch.zeros(3, 5, 8, dtype=torch.long), "prompt_lens": torch.tensor([5, 3, 0])}
    return Batch(**make_batch(SIZES), **prompts)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 7])
@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_training_pass_when_its_prefix_is_drawn_on_the_host_then_waits_for_nothing(
    build_model, host_batch, no_waiting, mode, stage, checkpointing
):
    model = build_model(prefix_mode=mode).train().to("meta")
    for half in (model.ar, model.nar):
        half.decoder.gradient_checkpointing = checkpointing
    prefix, there = draw_prefix(model.config, host_batch, None), host_batch.to("meta")
    with no_waiting:
        model(there, stage, prefix=prefix).loss.backward()


def test_evaluation_pass_when_its_prefix_is_on_the_host_then_waits_for_nothing(
    build_model, host_batch, no_waiting
):
    model, there = build_model().to("meta"), host_batch.to("meta")
    with torch.inference_mode(), no_waiting:
        model(there, 3, prefix=NarPrefix(mode=1, length=host_batch.code_lens // 3))


def test_training_pass_when_it_has_to_look_at_the_batch_then_the_test_above_would_see_it(
    build_model, host_batch, no_waiting
):
    model, there = build_model().to("meta"), host_batch.to("meta")
    with pytest.raises((AssertionError, RuntimeError)), no_waiting:
        model(there, 3)


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_prefix_when_drawn_beforehand_then_is_what_the_pass_would_draw(build_model, host_batch, mode):
    model = build_model(prefix_mode=mode)
    there, before = (torch.Generator().manual_seed(7) for _ in range(2))
    for _ in range(5):
        drawn = model(host_batch, 3, generator=there)
        given = model(host_batch, 3, prefix=draw_prefix(model.config, host_batch, before))
        assert torch.equal(given.loss, drawn.loss)
        assert torch.equal(given.num_targets, drawn.num_targets)
    assert torch.equal(there.get_state(), before.get_state())
