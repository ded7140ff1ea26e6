"""ScaledAdam and Eden against the original's values; resuming; the schedules; the choice of an optimizer."""

import copy
import io
import json
import math

import pytest
import torch
from safetensors.torch import load_file, safe_open

from finetune.eve import Eve
from finetune.optim import (
    ScaledAdam,
    build_optimizer,
    constant_factor,
    cosine_factor,
    eden_factor,
    noam_factor,
    peak_factor,
    schedule_factor,
)
from vallex.errors import ConfigError


@pytest.fixture
def reference(shared):
    """The tensors of the reference run, how many steps it has, and its settings."""
    path = shared / "reference" / "scaled_adam.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), int(metadata["steps"]), json.loads(metadata["hyperparameters"])


def make_params(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 4), (6, 4), (5,), (1,), ()]
    return [torch.nn.Parameter(0.3 * torch.randn(shape, generator=generator)) for shape in shapes]


def give_grads(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    size = 20.0 if step % 7 == 6 else 1.0  # some steps are clipped
    for param in params:
        param.grad = size * torch.randn(param.shape, generator=generator)


def run_steps(optimizer, params, steps: range) -> None:
    for step in steps:
        give_grads(params, step)
        optimizer.step()


def test_scaled_adam_over_the_reference_run_meets_every_step(reference):
    tensors, num_steps, settings = reference
    names = [key.removeprefix("init.") for key in tensors if key.startswith("init.")]
    params = {name: torch.nn.Parameter(tensors[f"init.{name}"].clone()) for name in names}
    optimizer = ScaledAdam(params.values(), **settings)
    assert len(names) == 5
    assert num_steps == 40
    for step in range(num_steps):
        for name, param in params.items():
            param.grad = tensors[f"grad.{step}.{name}"]
        optimizer.step()
        for name, param in params.items():
            torch.testing.assert_close(param.data, tensors[f"after.{step}.{name}"], rtol=1e-6, atol=2e-7)


def test_scaled_adam_when_the_order_of_parameters_differs_moves_them_alike(reference):
    tensors, _, settings = reference
    names = [key.removeprefix("init.") for key in tensors if key.startswith("init.")]
    ends = []
    for order in (names, names[::-1]):
        params = {name: torch.nn.Parameter(tensors[f"init.{name}"].clone()) for name in order}
        optimizer = ScaledAdam([{"params": list(params.values())}], **settings)
        for step in range(20):
            for name, param in params.items():
                param.grad = tensors[f"grad.{step}.{name}"]
            optimizer.step()
        ends.append(params)
    for name in names:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stop_after", [0, 1, 6, 11, 17])
@pytest.mark.parametrize(
    "name", ["ScaledAdam", "scaled-adam", "adamw", "adam", "eve", "torch.SGD", "torch.NAdam"]
)
def test_optimizer_saved_and_loaded_in_the_middle_goes_on_bit_for_bit(name, stop_after):
    def build(params, lr):
        # the class itself clips within so few steps
        return ScaledAdam(params, lr=lr) if name == "ScaledAdam" else build_optimizer(name, params, lr=lr)

    unbroken = make_params()
    run_steps(build(unbroken, lr=0.05), unbroken, range(24))

    first_half = make_params()
    optimizer = build(first_half, lr=0.05)
    run_steps(optimizer, first_half, range(stop_after))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second_half = copy.deepcopy(first_half)
    resumed = build(second_half, lr=0.01)  # the saved lr replaces this one
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run_steps(resumed, second_half, range(stop_after, 24))

    for expected, param in zip(unbroken, second_half, strict=True):
        assert torch.equal(expected, param)


def test_scaled_adam_without_a_gradient_moves_as_with_zeros():
    absent, zeros = make_params(), make_params()
    for params, fill in ((absent, None), (zeros, 0.0)):
        optimizer = ScaledAdam(params)
        for step in range(12):
            give_grads(params, step)
            if step % 3:  # as one NAR head of several
                params[0].grad = None if fill is None else torch.full_like(params[0], fill)
            optimizer.step()
    for a, b in zip(absent, zeros, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(absent[0], make_params()[0])


def test_scaled_adam_with_a_frozen_parameter_leaves_it_alone():
    params = make_params()
    params[0].data.mul_(100)  # so large that its scale would be shrunk
    before = params[0].detach().clone()
    params[0].requires_grad_(False)
    optimizer = ScaledAdam(params)
    run_steps(optimizer, params, range(8))
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state


def test_scaled_adam_does_not_change_gradients():
    params = make_params()
    optimizer = ScaledAdam(params, clipping_update_period=2)
    for step in range(8):
        give_grads(params, step)
        before = [param.grad.clone() for param in params]
        optimizer.step()
        assert all(torch.equal(a, p.grad) for a, p in zip(before, params, strict=True))


def test_scaled_adam_with_clipping_differs_only_in_the_scales():
    clipped, unclipped = make_params(), make_params()
    run_steps(ScaledAdam(clipped), clipped, range(20))
    run_steps(ScaledAdam(unclipped, clipping_scale=None), unclipped, range(20))
    assert not torch.equal(clipped[0], unclipped[0])  # steps 13 and 20 are clipped
    assert torch.equal(clipped[3], unclipped[3])  # a scalar has no scale


def test_scaled_adam_above_the_largest_size_shrinks_the_tensor():
    param = torch.nn.Parameter(torch.full((4, 4), 5.0))
    optimizer = ScaledAdam([param])
    for _ in range(200):
        optimizer.step()  # no gradient at all
    assert param.abs().max() < 3.1


def test_scaled_adam_given_a_closure_returns_its_loss():
    param = torch.nn.Parameter(torch.ones(3))

    def closure():
        loss = param.square().sum()
        loss.backward()
        return loss

    assert ScaledAdam([param]).step(closure).item() == 3.0
    assert (param < 1).all()


def test_scaled_adam_with_several_bad_settings_names_them_all():
    with pytest.raises(
        ConfigError, match=r"lr is -1;.*betas are \(0\.9, 1\.0\);.*clipping_update_period is 0"
    ):
        ScaledAdam(make_params(), lr=-1, betas=(0.9, 1.0), clipping_update_period=0)
    with pytest.raises(ConfigError, match="clipping_scale is 0; it must be above 0"):
        ScaledAdam(make_params(), clipping_scale=0)


def test_eden_factor_at_the_reference_points_is_exact(shared):
    cases = json.loads((shared / "reference" / "eden.json").read_text())
    num_points = 0
    for case in cases:
        for epoch, batch, lr in case["points"]:
            factor = eden_factor(
                batch,
                epoch,
                lr_batches=case["lr_batches"],
                lr_epochs=case["lr_epochs"],
                warmup_batches=case["warmup_batches"],
            )
            assert case["base_lr"] * factor == pytest.approx(lr, rel=1e-12)
            num_points += 1
    assert num_points > 20


def test_eden_factor_by_default_is_the_released_recipe():
    assert eden_factor(0, 0) == 0.5
    assert eden_factor(100, 0) == pytest.approx(0.75, rel=1e-3)
    assert eden_factor(5000, 4) == pytest.approx(2**-0.5)


def test_constant_factor_with_warmup_rises_in_equal_steps_to_one():
    assert [constant_factor(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert constant_factor(0) == 1


def test_cosine_factor_goes_from_one_to_the_floor_and_stays():
    factors = [cosine_factor(step, 14, warmup_steps=4, floor=0.1) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(0.55)  # halfway
    assert factors[13] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.9 * math.pi)))
    assert factors[14:] == [0.1] * 6
    assert factors[4:15] == sorted(factors[4:15], reverse=True)


def test_cosine_factor_when_warmup_is_as_long_as_the_run_ends_at_the_floor():
    assert [cosine_factor(step, 2, warmup_steps=2) for step in range(4)] == [0.5, 1.0, 0.0, 0.0]


def test_noam_factor_peaks_at_the_end_of_warmup():
    factors = [noam_factor(step, 10, 64) for step in range(40)]
    assert max(factors) == factors[9] == pytest.approx((64 * 10) ** -0.5)
    assert factors[0] == pytest.approx(64**-0.5 * 10**-1.5)
    assert factors[39] == pytest.approx(64**-0.5 * 40**-0.5)
    assert noam_factor(3, 0, 64) == pytest.approx(64**-0.5 / 2)


def test_peak_factor_is_the_largest_of_a_schedule():
    for warmup in (0, 1, 7):
        factors = [noam_factor(step, warmup, 64) for step in range(20)]
        assert peak_factor("noam", warmup_steps=warmup, d_model=64) == max(factors)
    assert peak_factor("eden", warmup_steps=7, d_model=64) == 1.0


def test_schedule_factor_passes_each_setting_to_its_schedule():
    def factor(kind):
        return schedule_factor(kind, 30, total_steps=100, warmup_steps=40, epoch=2, floor=0.2, d_model=256)

    assert factor("constant") == constant_factor(30, 40)
    assert factor("cosine") == cosine_factor(30, 100, 40, 0.2)
    assert schedule_factor("cosine", 100, total_steps=100, floor=0.2) == 0.2
    assert factor("noam") == noam_factor(30, 40, 256)
    assert factor("eden") == eden_factor(30, 2, warmup_batches=40)


def test_schedule_factor_given_an_unknown_kind_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"schedule 'cosin' is not known; .*Did you mean cosine\?"):
        schedule_factor("cosin", 0, total_steps=10)


def test_build_optimizer_given_adamw_has_the_recipe_of_lifeiteng():
    optimizer = build_optimizer("adamw", make_params(), lr=1e-4)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.95), 0.01)


def test_build_optimizer_given_groups_keeps_what_each_brings():
    params = make_params()
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0, "lr": 1e-5}]
    optimizer = build_optimizer("adamw", groups, lr=1e-4, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1e-4, 0.1),
        (1e-5, 0.0),
    ]


def test_build_optimizer_given_scaled_adam_clips_by_the_published_period_and_the_class_by_its_own():
    made = build_optimizer("scaled-adam", make_params(), lr=0.05)
    assert (made.defaults["clipping_update_period"], made.defaults["clipping_scale"]) == (1000, 2.0)
    assert made.defaults["betas"] == (0.9, 0.95)
    assert ScaledAdam(make_params()).defaults["clipping_update_period"] == 8


@pytest.mark.parametrize(("name", "is_fused"), [("adamw", True), ("adam", True), ("torch.NAdam", None)])
def test_build_optimizer_when_there_is_a_fused_kernel_takes_it(name, is_fused):
    optimizer = build_optimizer(name, make_params(), lr=1e-4)
    assert optimizer.param_groups[0].get("fused") == is_fused


def test_build_optimizer_given_adam_has_no_weight_decay_unless_asked():
    optimizer = build_optimizer("adam", make_params(), lr=1e-4)
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert build_optimizer("adam", make_params(), lr=1e-4, weight_decay=0.5).defaults["weight_decay"] == 0.5


def test_build_optimizer_given_none_takes_the_optimizers_own():
    eve = build_optimizer("eve", [{"params": make_params(), "weight_decay": None}], lr=1e-4)
    assert isinstance(eve, Eve)
    group = eve.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["target_rms"]) == ((0.9, 0.98), 1e-3, 0.1)
    assert build_optimizer("eve", make_params(), lr=1e-4, betas=(None, 0.9)).defaults["betas"] == (0.9, 0.9)
    radam = build_optimizer("torch.RAdam", make_params(), lr=1e-4)
    assert type(radam) is torch.optim.RAdam
    assert radam.defaults["betas"] == (0.9, 0.999)


def test_build_optimizer_of_torch_without_betas_or_decay_leaves_them_out():
    sgd = build_optimizer("torch.SGD", make_params(), lr=1e-4, betas=(0.5, 0.5), weight_decay=0.3)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["lr"], sgd.defaults["weight_decay"]) == (1e-4, 0.3)
    assert type(build_optimizer("torch.Rprop", make_params(), lr=1e-4, weight_decay=0.3)) is torch.optim.Rprop


@pytest.mark.parametrize("name", ["torch.Optimizer", "LBFGS", "torch.Adamw", "AdamW", "torch.save"])
def test_build_optimizer_given_what_is_no_fit_optimizer_of_torch_refuses_it(name):
    with pytest.raises(ConfigError, match=f"optimizer '{name}' is not known; .*torch.AdamW"):
        build_optimizer(name, make_params(), lr=1e-4)


@pytest.mark.parametrize(
    ("name", "why"), [("torch.LBFGS", "the loss several times"), ("torch.SparseAdam", "sparse gradients")]
)
def test_build_optimizer_given_one_that_is_unfit_says_why(name, why):
    with pytest.raises(ConfigError, match=f"optimizer '{name}' is unfit here: it .*{why}.*; take adamw"):
        build_optimizer(name, make_params(), lr=1e-4)


def test_eve_in_every_step_is_its_formula():
    params = make_params()
    with torch.no_grad():
        params[1].mul_(0.05)  # below the target: not shrunk
    expected = [p.detach().double().clone() for p in params]
    optimizer = Eve(params, lr=0.01, weight_decay=0.02)
    moments = [torch.zeros_like(p) for p in expected]
    squares = [torch.zeros_like(p) for p in expected]
    for step in range(1, 12):
        give_grads(params, step)
        for i, param in enumerate(params):
            grad = param.grad.double()
            moments[i] = 0.9 * moments[i] + 0.1 * grad
            squares[i] = 0.98 * squares[i] + 0.02 * grad**2
            if grad.numel() > 1 and expected[i].square().mean().sqrt() > 0.1:
                expected[i] = expected[i] * (1 - 0.02)
            change = moments[i] / (1 - 0.9**step) / ((squares[i] / (1 - 0.98**step)).sqrt() + 1e-8)
            expected[i] = expected[i] - 0.01 * change
        optimizer.step()
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach(), value.float(), rtol=1e-5, atol=1e-6)


def test_eve_without_a_gradient_leaves_a_parameter_alone():
    params = make_params()
    optimizer = Eve(params, lr=0.01)
    run_steps(optimizer, params, range(3))
    before = params[0].detach().clone()
    for param in params:
        param.grad = None
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert torch.equal(params[0], before)
    assert optimizer.state[params[0]]["step"] == 3


def test_eve_with_several_bad_settings_names_them_all():
    with pytest.raises(ConfigError, match=r"eve: lr is -1;.*weight_decay is 0\.5; .*target_rms is 0;"):
        Eve(make_params(), lr=-1, weight_decay=0.5, target_rms=0)


def test_build_optimizer_given_an_unknown_name_offers_the_nearest():
    with pytest.raises(
        ConfigError, match=r"optimizer 'scaledadam' is not known; .*Did you mean scaled-adam\?"
    ):
        build_optimizer("scaledadam", make_params(), lr=0.05)


def test_eve_when_it_steps_then_waits_for_no_device(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a tensor made of numbers is copied to its device, and waited for")

    # on "meta" there are no values to be asked for
    parameters = [torch.nn.Parameter(torch.ones(shape, device="meta")) for shape in ((3, 4), (5,), ())]
    optimizer = Eve(parameters, weight_decay=0.01)
    monkeypatch.setattr(torch.Tensor, "new_tensor", refused)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
