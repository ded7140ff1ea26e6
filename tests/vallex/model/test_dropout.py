"""Dropout as computed here against the formulas that it stands for, with the masks that were drawn."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch.nn import functional as F

from vallex.model.dropout import Dropout, _blocks, add_dropped, attention, relu_dropout
from vallex.model.layers import Decoder

RATE = 0.3


def drawn_factors(shape, seed=0):
    """What dropout multiplies with at this seed: 0 or 1 / (1 - RATE)."""
    torch.manual_seed(seed)
    dropout = Dropout(RATE).train()
    return dropout(torch.ones(shape))


def gradients(function, inputs, upstream):
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("rate", [0.1, RATE, 0.9])
def test_dropout_when_training_then_drops_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    dropped = Dropout(rate).train()(torch.ones(1001, 1003))
    assert float((dropped == 0).double().mean()) == pytest.approx(rate, abs=0.002)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])


def test_dropout_when_drawn_then_neighbours_are_independent_and_a_seed_gives_the_same():
    factors = drawn_factors((1000, 1000))
    kept = (factors > 0).double()
    for apart in (1, 2, 4):
        both = float((kept[:, :-apart] * kept[:, apart:]).mean())
        assert both == pytest.approx((1 - RATE) ** 2, abs=0.003)
    assert torch.equal(factors, drawn_factors((1000, 1000)))
    assert not torch.equal(factors, drawn_factors((1000, 1000), seed=1))


def test_dropout_when_evaluating_or_at_rate_zero_then_changes_nothing_and_draws_nothing():
    x = torch.randn(3, 5)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(RATE).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert torch.equal(relu_dropout(x, 0.0), x.relu())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_when_differentiated_then_the_gradient_passes_where_the_value_did():
    x, upstream = torch.randn(7, 9), torch.randn(7, 9)
    factors = drawn_factors(x.shape)
    torch.manual_seed(0)
    out, grad = gradients(Dropout(RATE).train(), [x], upstream)
    torch.testing.assert_close(out, x * factors)
    torch.testing.assert_close(grad, upstream * factors)


def test_relu_dropout_when_differentiated_then_equals_the_two_after_one_another():
    x, upstream = torch.randn(7, 9), torch.randn(7, 9)
    factors = drawn_factors(x.shape)
    torch.manual_seed(0)
    out, grad = gradients(lambda x: relu_dropout(x.clone(), RATE), [x], upstream)
    torch.testing.assert_close(out, x.relu() * factors)
    torch.testing.assert_close(grad, upstream * factors * (x > 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_dropped_when_differentiated_then_equals_dropout_and_sum(dtype):
    x, upstream, branch = torch.randn(7, 9), torch.randn(7, 9), torch.randn(7, 9).to(dtype)
    torch.manual_seed(0)
    out, *grads = gradients(lambda x, branch: add_dropped(x, branch.clone(), RATE), [x, branch], upstream)
    kept = (out - x).detach().abs() > 1e-6
    assert 0 < int(kept.sum()) < kept.numel()
    factors = kept / (1 - RATE)
    assert out.dtype == torch.float32  # of the residual, under autocast too
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(out, x + branch.float() * factors, **tolerance)
    torch.testing.assert_close(grads[0], upstream)
    torch.testing.assert_close(grads[1].float(), upstream * factors, **tolerance)
    assert torch.equal(add_dropped(x, branch, 0.0), x + branch)


@pytest.mark.parametrize("is_x_trained", [True, False])
@pytest.mark.parametrize("is_layer_trained", [True, False])
def test_add_dropped_when_the_branch_is_a_view_then_each_gradient_goes_where_it_belongs(
    is_x_trained, is_layer_trained
):
    layer = torch.nn.Linear(9, 9).requires_grad_(is_layer_trained)
    x, h, upstream = (
        torch.randn(2, 7, 9, requires_grad=is_x_trained),
        torch.randn(2, 7, 9),
        torch.randn(2, 7, 9),
    )
    h.requires_grad_()
    assert layer(h)._is_view()  # of its rows
    factors = drawn_factors(x.shape)
    torch.manual_seed(0)
    add_dropped(x, layer(h), RATE).backward(upstream)
    torch.testing.assert_close(h.grad, (upstream * factors) @ layer.weight)
    torch.testing.assert_close(x.grad, upstream if is_x_trained else None)


@pytest.mark.parametrize("trained", ["*", "*.linear2.*", "layers.0.self_attn.out_proj.*"])
@pytest.mark.parametrize("saves_memory", [True, False])
def test_decoder_when_trained_with_dropout_then_its_gradient_is_the_slope_of_its_loss(trained, saves_memory):
    torch.manual_seed(0)
    decoder = Decoder(16, 2, 2, RATE, adaptive=False).train()
    decoder.gradient_checkpointing = saves_memory
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(fnmatchcase(name, trained))
    parameters = [p for p in decoder.parameters() if p.requires_grad]
    x, upstream = torch.randn(2, 5, 16), torch.randn(2, 5, 16)

    def loss():
        torch.manual_seed(1)
        return (decoder(x) * upstream).sum()

    grads = torch.autograd.grad(loss(), parameters)
    norm = torch.nn.utils.get_total_norm(grads)
    with torch.no_grad():
        ends = []
        for step in (1e-3, -2e-3):  # there, and to the other side
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.add_(grad / norm, alpha=step)
            ends.append(loss())
    assert float(ends[0] - ends[1]) / 2e-3 == pytest.approx(float(norm), rel=0.02)


@pytest.mark.parametrize("masked", ["nothing", "columns", "pairs"])
def test_attention_when_its_weights_are_dropped_then_equals_the_formula(masked):
    torch.manual_seed(1)
    q, upstream = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    k, v = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4)
    mask = {"nothing": None, "columns": torch.rand(2, 1, 1, 8) < 0.7, "pairs": torch.rand(2, 1, 6, 8) < 0.7}
    mask = mask[masked]
    # each utterance draws its own mask, one after the other
    torch.manual_seed(0)
    dropout = Dropout(RATE).train()
    factors = torch.stack([dropout(torch.ones(3, 6, 8)) for _ in range(2)])

    def formula(q, k, v):
        scores = q @ k.transpose(-1, -2) / 2
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * factors) @ v

    torch.manual_seed(0)
    ours = gradients(lambda *inputs: attention(*inputs, mask, RATE), [q, k, v], upstream)
    for own, expected in zip(ours, gradients(formula, [q, k, v], upstream), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", ["nothing", "later columns", "padding"])
def test_attention_when_computed_some_rows_at_a_time_then_equals_the_formula(masked, monkeypatch):
    monkeypatch.setattr("vallex.model.dropout.ROWS", 3)
    torch.manual_seed(1)
    q, k, v, upstream = torch.randn(4, 2, 3, 8, 8)
    mask = {
        "nothing": torch.ones(2, 1, 8, 8, dtype=torch.bool),
        "later columns": torch.ones(2, 1, 8, 8, dtype=torch.bool).tril(),
        "padding": (torch.arange(8) < torch.tensor([5, 8])[:, None])[:, None, None, :].expand(2, 1, 8, 8),
    }[masked]
    # what is dropped is seen where all weights of a row are equal and the values are the unit matrix
    torch.manual_seed(0)
    equal = attention(torch.zeros_like(q), k, torch.eye(8).expand(2, 3, 8, 8), mask, RATE)
    factors = equal * mask.sum(-1, keepdim=True)
    assert {round(float(x), 3) for x in factors.unique()} == {0.0, round(1 / (1 - RATE), 3)}

    def formula(q, k, v):
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * factors) @ v

    torch.manual_seed(0)
    ours = gradients(lambda *inputs: attention(*inputs, mask, RATE), [q, k, v], upstream)
    for own, expected in zip(ours, gradients(formula, [q, k, v], upstream), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_attention_when_columns_are_seen_by_no_row_of_a_block_then_they_are_not_computed():
    causal = torch.ones(1, 1, 300, 300, dtype=torch.bool).tril()
    blocks = [(rows.start, columns.stop) for _, rows, columns in _blocks(causal)]
    assert blocks == [(0, 96), (96, 192), (192, 288), (288, 300)]


def test_attention_when_in_bfloat16_then_is_near_float32():
    q, k, v = torch.randn(3, 2, 4, 40, 16).bfloat16()
    upstream = torch.randn(2, 4, 40, 16).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        inputs = [x.to(dtype) for x in (q, k, v)]
        results.append(gradients(lambda *inputs: attention(*inputs, None, RATE), inputs, upstream.to(dtype)))
    for low, high in zip(*results, strict=True):
        assert low.dtype == torch.bfloat16
        assert float((low.float() - high).detach().norm() / high.detach().norm()) < 0.02


def test_attention_without_dropout_then_is_pytorchs_own():
    q, k, v = torch.randn(3, 2, 3, 6, 4)
    assert torch.equal(attention(q, k, v, None, 0.0), F.scaled_dot_product_attention(q, k, v))
