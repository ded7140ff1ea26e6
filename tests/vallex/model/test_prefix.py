"""What is drawn for NAR training (prefixes, segments, stages): all of the support, reproducibly."""

import pytest
import torch

from vallex.model.prefix import MAX_PROMPT_FRAMES, draw_prefix_len

SIZES = [(9, 30), (4, 17), (12, 24)]


def drawn_prefixes(config, min_frames, draws):
    generator = torch.Generator().manual_seed(0)
    return [draw_prefix_len(config, min_frames, generator) for _ in range(draws)]


@pytest.mark.parametrize("min_frames", [1, 3, 4, 5, 7, 8, 20, 43])
def test_draw_prefix_len_draws_all_of_its_support_and_nothing_else(build_model, min_frames):
    drawn = drawn_prefixes(build_model().config, min_frames, 1000)
    assert set(drawn) == set(range(max(1, 2 * (min_frames // 4))))


def test_draw_prefix_len_is_uniform(build_model):
    counts = torch.tensor(drawn_prefixes(build_model().config, 20, 5000)).bincount()
    assert counts.shape == (10,)
    assert 400 < counts.min() <= counts.max() < 600


def test_draw_prefix_len_of_a_long_clip_stops_at_three_seconds(build_model):
    drawn = drawn_prefixes(build_model().config, 1000, 2000)
    assert max(drawn) == MAX_PROMPT_FRAMES == 225
    assert min(drawn) < 5


@pytest.mark.parametrize("min_frames", [1, 3, 4, 7, 20, 43])
def test_draw_prefix_len_with_a_least_share_starts_there(build_model, min_frames):
    config = build_model(prefix_min_share=0.25).config
    quarter = min_frames // 4
    drawn = drawn_prefixes(config, min_frames, 1000)
    assert set(drawn) == set(range(quarter, max(quarter + 1, 2 * quarter)))


def test_draw_prefix_len_with_a_least_share_of_one_half_is_the_longest(build_model):
    assert set(drawn_prefixes(build_model(prefix_min_share=0.5).config, 40, 50)) == {19}


def test_nar_loss_drawn_with_one_generator_state_is_reproducible(build_model, make_batch):
    model, batch = build_model(), make_batch(SIZES)
    for mode in (1, 2):
        losses = [
            [
                model.nar_loss(**batch, prefix_mode=mode, generator=generator).loss.item()
                for generator in [torch.Generator().manual_seed(seed)]
                for _ in range(4)
            ]
            for seed in (5, 5, 6)
        ]
        assert losses[0] == losses[1]
        assert losses[0] != losses[2]


def test_nar_loss_with_a_generator_leaves_the_global_rng_alone(build_model, make_batch):
    model, batch = build_model(), make_batch(SIZES)
    before = torch.get_rng_state()
    for mode in (1, 2):
        model.nar_loss(**batch, prefix_mode=mode, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_nar_loss_without_a_prefix_draws_it_in_evaluation_mode_too(build_model, make_batch):
    model, batch = build_model(num_layers=1), make_batch([(3, 40)])
    generator = torch.Generator().manual_seed(0)
    lengths = {model.nar_loss(**batch, stage=1, generator=generator).logits.shape[1] for _ in range(300)}
    assert lengths == set(range(40 - 19, 41))


def test_nar_loss_in_mode_2_draws_every_segment(build_model, make_batch, monkeypatch):
    model, batch = build_model(num_layers=1), make_batch([(3, 20)])
    read = []
    monkeypatch.setattr(
        "vallex.model.network.NonAutoregressiveHalf.embed_audio",
        lambda self, audio, stage: (
            read.append(audio.codes[0, : audio.prompt_span, 0]) or torch.zeros(1, audio.codes.shape[1], 32)
        ),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        out = model.nar_loss(**batch, stage=1, prefix_mode=2, generator=generator)
        assert out.num_targets == 15
    segments = {tuple(segment.tolist()) for segment in read}
    frames = batch["codes"][0, :, 0].tolist()
    assert segments == {tuple(frames[i : i + 5]) for i in range(16)}


def test_nar_loss_without_a_stage_draws_each_of_them(build_model, make_batch):
    model, batch = build_model(num_layers=1), make_batch([(3, 8)])
    fixed = {"prefix_mode": 1, "prefix_len": 2}
    by_stage = {model.nar_loss(**batch, stage=stage, **fixed).loss.item(): stage for stage in range(1, 8)}
    generator = torch.Generator().manual_seed(0)
    drawn = {by_stage[model.nar_loss(**batch, **fixed, generator=generator).loss.item()] for _ in range(80)}
    assert drawn == set(range(1, 8))
