"""Synthesis: the cache changes nothing, each prefix mode reads what it should, draws are its own, errors."""

import pytest
import torch

from vallex.errors import ConfigError, PromptError, TextError
from vallex.model.config import EOS_ID, FRAMES_PER_PHONEME
from vallex.model.decoding import GenerateRequest, generate
from vallex.model.layers import KVCache

ROWS = {"en": 0, "zh": 1, "ja": 2}
TEXT = torch.tensor([7, 30, 12, 55, 9, 41, 18])
NUM_PROMPT_TEXT = 3


@pytest.fixture
def prompt(make_batch):
    return make_batch([(1, 6)])["codes"][0]


def languages(num_prompt_text, prompt_language, text_language):
    num_target = len(TEXT) - num_prompt_text
    target = [text_language] * num_target if isinstance(text_language, str) else text_language
    return torch.tensor([[ROWS[code] for code in [prompt_language] * num_prompt_text + target]])


def teacher_forced(model, codes, prompt, num_prompt_text, language, mode=1):
    """Logits of AR and NAR by the training passes over prompt and target: [T + 1, 1025], 7 of [T, 1024]."""
    whole = torch.cat([prompt, codes])[None]
    batch = {
        "text": TEXT[None],
        "text_lens": torch.tensor([len(TEXT)]),
        "codes": whole,
        "code_lens": torch.tensor([whole.shape[1]]),
        "language": language,
    }
    num_prompt = len(prompt)
    prompt_codes, prefix_len = None, num_prompt
    with torch.no_grad():
        first = num_prompt - (not model.config.prepend_bos)
        ar = model.ar_loss(**batch).logits[0, first:]
        if mode in (2, 4):
            # only the text of the target, and the prompt as another utterance's
            target = {
                "text": TEXT[None, num_prompt_text:],
                "text_lens": torch.tensor([len(TEXT) - num_prompt_text]),
            }
            batch |= target | {"codes": codes[None], "code_lens": torch.tensor([len(codes)])}
            batch["language"] = language[:, num_prompt_text:]
            prompt_codes, mode = prompt[None], 4
        nar = [
            model.nar_loss(
                **batch, stage=stage, prefix_mode=mode, prefix_len=prefix_len, prompt_codes=prompt_codes
            ).logits[0, -len(codes) :]
            for stage in range(1, 8)
        ]
    return ar, nar


@pytest.mark.parametrize(
    ("num_prompt_text", "num_prompt", "prompt_language", "text_language"),
    [
        (3, 6, "en", "en"),
        (3, 6, "ja", "en"),
        (3, 6, "zh", ["ja", "en", "zh", "zh"]),
        (0, 0, "en", "zh"),
        (0, 6, "en", "ja"),
        (3, 0, "ja", "ja"),
    ],
)
@pytest.mark.parametrize("add_prenet", [False, True])
def test_generate_gives_what_the_training_passes_predict(
    build_model, prompt, add_prenet, num_prompt_text, num_prompt, prompt_language, text_language
):
    model, prompt = build_model(add_prenet=add_prenet), prompt[:num_prompt]
    steps = []
    model.ar.predict_layer.register_forward_hook(lambda _module, _args, output: steps.append(output.clone()))
    codes = model.generate(
        TEXT,
        prompt,
        num_prompt_text,
        prompt_language=prompt_language,
        text_language=text_language,
        top_k=1,
        max_frames=20,
    )
    assert codes.shape == (20, 8)
    language = languages(num_prompt_text, prompt_language, text_language)
    cached = torch.cat(steps)
    ar, nar = teacher_forced(model, codes, prompt, num_prompt_text, language)
    torch.testing.assert_close(cached, ar, atol=1e-4, rtol=1e-4)
    assert torch.equal(codes[:, 0], ar[:20].argmax(dim=-1))
    for stage in range(1, 8):
        assert torch.equal(codes[:, stage], nar[stage - 1].argmax(dim=-1)), stage


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
@pytest.mark.parametrize("num_prompt", [0, 6])
def test_generate_in_each_prefix_mode_reads_what_training_reads(build_model, prompt, mode, num_prompt):
    model, prompt = build_model(prefix_mode=mode), prompt[:num_prompt]
    settings = {
        "prompt_language": "zh",
        "text_language": ["ja", "en", "en", "zh"],
        "top_k": 1,
        "max_frames": 9,
    }
    codes = model.generate(TEXT, prompt, NUM_PROMPT_TEXT, **settings)
    language = languages(NUM_PROMPT_TEXT, "zh", settings["text_language"])
    _, nar = teacher_forced(model, codes, prompt, NUM_PROMPT_TEXT, language, mode)
    for stage in range(1, 8):
        assert torch.equal(codes[:, stage], nar[stage - 1].argmax(dim=-1)), stage
    # the argument wins over the model's own mode
    assert torch.equal(
        codes, build_model().generate(TEXT, prompt, NUM_PROMPT_TEXT, **settings, prefix_mode=mode)
    )


def nar_texts(model, monkeypatch):
    read = []
    inner = model.nar.embed_text
    monkeypatch.setattr(
        model.nar,
        "embed_text",
        lambda *args: read.append((args[0].tolist(), args[1].tolist())) or inner(*args),
    )
    return read


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_generate_in_modes_2_and_4_gives_the_nar_the_target_text_only(build_model, prompt, monkeypatch, mode):
    model = build_model()
    read = nar_texts(model, monkeypatch)
    per_token = ["ja", "en", "zh", "ja"]
    model.generate(TEXT, prompt, NUM_PROMPT_TEXT, "en", per_token, top_k=1, max_frames=3, prefix_mode=mode)
    first = NUM_PROMPT_TEXT if mode in (2, 4) else 0
    rows = [0, 0, 0, 2, 0, 1, 2][first:]
    assert read == [([TEXT[first:].tolist()], [rows])] * 7


def test_generate_with_one_language_is_that_language_for_every_token(build_model, prompt):
    model = build_model()
    settings = {"num_prompt_text": NUM_PROMPT_TEXT, "top_k": 1, "max_frames": 12}
    one = model.generate(TEXT, prompt, text_language="zh", **settings)
    assert torch.equal(one, model.generate(TEXT, prompt, text_language=["zh"] * 4, **settings))
    assert not torch.equal(one, model.generate(TEXT, prompt, text_language=["zh"] * 3 + ["en"], **settings))
    assert not torch.equal(
        one, model.generate(TEXT, prompt, text_language="zh", prompt_language="ja", **settings)
    )


def test_generate_over_many_chunks_of_the_cache_is_still_the_full_pass(build_model, prompt, monkeypatch):
    monkeypatch.setattr(KVCache, "GROWTH_FRAMES", 4)
    model = build_model()
    codes = model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=60, seed=3)
    monkeypatch.undo()
    assert torch.equal(codes, model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=60, seed=3))


def test_generate_with_one_seed_is_reproducible(build_model, prompt):
    model = build_model()
    by_seed = [
        model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=15, nar_temperature=1.0, seed=seed)
        for seed in (4, 4, 5)
    ]
    assert torch.equal(by_seed[0], by_seed[1])
    assert not torch.equal(by_seed[0][:, 0], by_seed[2][:, 0])


def test_generate_with_a_nar_temperature_draws_the_other_codebooks(build_model, prompt):
    model = build_model()
    settings = {"num_prompt_text": NUM_PROMPT_TEXT, "top_k": 1, "max_frames": 15}
    greedy, *drawn = [
        model.generate(TEXT, prompt, **settings, nar_temperature=temperature, seed=seed)
        for temperature, seed in ((0.0, 1), (1.0, 1), (1.0, 2))
    ]
    assert torch.equal(greedy[:, 0], drawn[0][:, 0])
    assert (greedy[:, 1:] != drawn[0][:, 1:]).float().mean() > 0.5
    assert not torch.equal(drawn[0], drawn[1])


def test_generate_at_temperature_0_is_greedy(build_model, prompt):
    model = build_model()
    cold, greedy = (
        model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=15, **settings)
        for settings in ({"temperature": 0.0, "seed": 7}, {"top_k": 1, "seed": 8})
    )
    assert torch.equal(cold, greedy)


def test_generate_with_top_k_draws_from_the_k_likeliest_only(build_model, prompt):
    model = build_model()
    steps = []
    model.ar.predict_layer.register_forward_hook(lambda _module, _args, output: steps.append(output[0]))
    codes = model.generate(TEXT, prompt, NUM_PROMPT_TEXT, top_k=3, temperature=3.0, max_frames=40, seed=2)
    ranks = [
        int((logits > logits[code]).sum()) for logits, code in zip(steps, codes[:, 0].tolist(), strict=False)
    ]
    assert set(ranks) == {0, 1, 2}


def test_generate_does_not_touch_the_global_rng(build_model, prompt):
    model = build_model()
    before = torch.get_rng_state()
    model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=5, nar_temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_generate_leaves_each_module_in_the_mode_it_was_in(build_model, prompt):
    model = build_model(add_prenet=True, num_layers=1).train()
    model.nar.eval()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.ar.text_prenet.norms[0].running_mean.clone()
    first, second = (model.generate(TEXT, prompt, NUM_PROMPT_TEXT, top_k=1, max_frames=5) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(TextError):
        model.generate(TEXT, prompt, NUM_PROMPT_TEXT, text_language="fr")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(model.ar.text_prenet.norms[0].running_mean, statistics)


def test_generate_that_fails_midway_leaves_the_training_mode_as_it_was(build_model, prompt, monkeypatch):
    model = build_model().train()

    def fail(*_args, **_settings):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("vallex.model.decoding.sample", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(TEXT, prompt, NUM_PROMPT_TEXT)
    assert model.training
    assert model.ar.decoder.training


def force_eos(model, weight):
    """Makes EOS the likeliest at every step (positive weight) or the least likely (negative)."""
    norm = model.ar.decoder.norm
    with torch.no_grad():
        norm.bias.fill_(1.0)
        model.ar.predict_layer.weight[EOS_ID].fill_(weight)


def request(prompt, **settings):
    settings = {
        "text": TEXT,
        "prompt_codes": prompt,
        "num_prompt_text": NUM_PROMPT_TEXT,
        "top_k": 1,
    } | settings
    return GenerateRequest(**settings)


def test_generate_ends_at_eos_and_keeps_it_out_of_the_codes(build_model, prompt):
    model = build_model()
    force_eos(model, 10.0)
    result = generate(model, request(prompt))
    assert result.ended == "eos"
    assert result.codes.shape == (0, 8)
    assert result.codes.dtype == torch.int64


@pytest.mark.parametrize("num_prompt", [0, 6])
def test_generate_without_eos_ends_at_16_frames_a_phoneme(build_model, prompt, num_prompt):
    model = build_model(num_layers=1)
    force_eos(model, -10.0)
    result = generate(model, request(prompt[:num_prompt]))
    assert result.ended == "budget"
    assert FRAMES_PER_PHONEME == 16
    assert result.codes.shape == (16 * len(TEXT), 8)


def test_generate_with_max_frames_stops_there(build_model, prompt):
    model = build_model(num_layers=1)
    force_eos(model, -10.0)
    for max_frames in (1, 7):
        result = generate(model, request(prompt, max_frames=max_frames))
        assert (result.ended, len(result.codes)) == ("budget", max_frames)


def test_generate_gives_codes_that_training_can_use(build_model, prompt):
    model = build_model(num_layers=1)
    codes = model.generate(TEXT, prompt, NUM_PROMPT_TEXT, max_frames=4, top_k=1)
    assert not codes.is_inference()
    assert 0 <= codes.min() <= codes.max() < 1024


def test_generate_takes_codes_and_text_of_other_integer_types(build_model, prompt):
    model = build_model(num_layers=1)
    settings = {"num_prompt_text": NUM_PROMPT_TEXT, "max_frames": 4, "top_k": 1}
    assert torch.equal(
        model.generate(TEXT, prompt, **settings),
        model.generate(TEXT.int(), prompt.to(torch.int16), **settings),
    )


def test_generate_without_bos_needs_a_prompt(build_model, prompt):
    model = build_model(prepend_bos=False)
    codes = model.generate(TEXT, prompt, NUM_PROMPT_TEXT, top_k=1, max_frames=6)
    ar, _ = teacher_forced(model, codes, prompt, NUM_PROMPT_TEXT, languages(NUM_PROMPT_TEXT, "en", "en"))
    assert torch.equal(codes[:, 0], ar[:6].argmax(dim=-1))
    with pytest.raises(PromptError, match="no BOS and cannot begin without a prompt"):
        model.generate(TEXT, prompt[:0], 0)


WRONG = {
    "four codebooks": ({"prompt_codes": torch.zeros(5, 4).long()}, PromptError, r"\[5, 4\].*\[P, 8\]"),
    "a batch of prompts": (
        {"prompt_codes": torch.zeros(1, 5, 8).long()},
        PromptError,
        r"\[1, 5, 8\].*\[P, 8\]",
    ),
    "codes too high": (
        {"prompt_codes": torch.full((5, 8), 1024)},
        PromptError,
        r"1024\.\.1024; codes are 0\.\.1023",
    ),
    "codes below 0": (
        {"prompt_codes": torch.full((5, 8), -3)},
        PromptError,
        r"-3\.\.-3; codes are 0\.\.1023",
    ),
    "ids too high": (
        {"text": torch.tensor([5, 70]), "num_prompt_text": 0},
        TextError,
        r"5\.\.70; .* 0\.\.69",
    ),
    "ids below 0": ({"text": torch.tensor([5, -1]), "num_prompt_text": 0}, TextError, r"-1\.\.5; .* 0\.\.69"),
    "a batch of text": (
        {"text": TEXT[None]},
        TextError,
        r"\[1, 7\] with 3 prompt phonemes; it must be \[S\]",
    ),
    "no text": ({"text": TEXT[:0], "num_prompt_text": 0}, TextError, "at least one target phoneme"),
    "no target text": ({"num_prompt_text": 7}, TextError, r"\[7\] with 7 prompt phonemes"),
    "more prompt than text": ({"num_prompt_text": 9}, TextError, r"\[7\] with 9 prompt phonemes"),
    "negative prompt text": ({"num_prompt_text": -1}, TextError, "with -1 prompt phonemes"),
    "unknown language": ({"text_language": "fr"}, TextError, "language fr is not known.* en, zh, ja"),
    "unknown prompt language": ({"prompt_language": "de"}, TextError, "language de is not known"),
    "unknown languages of tokens": (
        {"text_language": ["en", "xx", "en", "fr"]},
        TextError,
        "language fr, xx is",
    ),
    "too few languages": ({"text_language": ["en"] * 3}, TextError, "names 3 languages.* 4 target phonemes"),
    "too many languages": ({"text_language": ["en"] * 7}, TextError, "names 7 languages.* 4 target phonemes"),
    "prefix mode": ({"prefix_mode": 3}, ConfigError, "prefix_mode is 3; it must be one of 0, 1, 2, 4"),
    "no frames": ({"max_frames": 0}, ConfigError, "max_frames is 0; it must be at least 1"),
    "cold": ({"temperature": -0.5}, ConfigError, "temperatures are -0.5 and 0.0"),
    "cold nar": ({"nar_temperature": -1.0}, ConfigError, "temperatures are 1.0 and -1.0"),
    "top_k": ({"top_k": 0}, ConfigError, "top_k is 0; it must be at least 1"),
    "top_p": ({"top_p": 0.0}, ConfigError, "top_p is 0.0; it must be above 0 and at most 1"),
    "top_p in percent": ({"top_p": 90.0}, ConfigError, "top_p is 90.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_generate_of_what_the_model_cannot_read_says_so(build_model, prompt, name):
    settings, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        generate(build_model(num_layers=1), request(prompt, **settings))
    assert "\n" not in str(caught.value)
