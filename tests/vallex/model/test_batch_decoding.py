"""Decoding in batches: every row as it is alone, whatever it is padded with and whoever ends before it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import vallex
from vallex.model import decoding
from vallex.model.config import EOS_ID
from vallex.model.decoding import decode_first, generate, generate_batch
from vallex.model.requests import GenerateRequest

SIZES = [(9, 3, 6), (4, 2, 0), (12, 0, 11), (7, 6, 2)]
"""Phonemes, those of them that are the prompt's, frames of the prompt."""
SETTINGS = [
    {"top_k": 1},
    {"top_k": 5, "temperature": 0.8},
    {"top_p": 0.9},
    {"repetition_aware": 0.1, "top_p": 0.5, "repetition_penalty": 1.5},
]


@pytest.fixture
def requests(make_batch):
    def make(settings=({},), **common):
        drawn = make_batch([(text, max(1, frames)) for text, _, frames in SIZES])
        return [
            GenerateRequest(
                text=drawn["text"][i, :num_text],
                prompt_codes=drawn["codes"][i, :num_frames],
                num_prompt_text=num_prompt_text,
                prompt_language=["ja", "en", "zh"][i % 3],
                text_language=["en", "zh", "ja"][i % 3],
                **({"max_frames": 12 + 3 * i, "seed": i} | common | settings[i % len(settings)]),
            )
            for i, (num_text, num_prompt_text, num_frames) in enumerate(SIZES)
        ]

    return make


def frequent_eos(model, logit=4.0):
    """Makes EOS likely enough that rows end at different steps."""
    with torch.no_grad():
        model.ar.decoder.norm.bias.fill_(1.0)
        model.ar.predict_layer.weight[EOS_ID].fill_(logit / 32)
    return model


def assert_equal(batch, alone):
    for i, (one, other) in enumerate(zip(batch, alone, strict=True)):
        assert one.ended == other.ended, i
        assert torch.equal(one.codes, other.codes), i
        assert one.mean_log_prob == pytest.approx(other.mean_log_prob, abs=1e-4), i


@pytest.mark.parametrize("add_prenet", [False, True])
@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_generate_batch_when_greedy_then_rows_are_what_they_are_alone(
    build_model, requests, mode, add_prenet
):
    model, batch = build_model(add_prenet=add_prenet), requests(top_k=1, prefix_mode=mode)
    assert_equal(generate_batch(model, batch), [generate(model, request) for request in batch])


def test_generate_batch_when_prefix_modes_differ_then_each_row_reads_in_its_own(build_model, requests):
    model = build_model()
    batch = requests([{"prefix_mode": mode} for mode in (0, 2, 1, 4)], top_k=1)
    assert_equal(generate_batch(model, batch), [generate(model, request) for request in batch])


@pytest.mark.parametrize("settings", [*([one] for one in SETTINGS), SETTINGS])
def test_generate_batch_when_drawing_then_a_seed_gives_what_it_gives_alone(build_model, requests, settings):
    model, batch = frequent_eos(build_model()), requests(settings, nar_temperature=0.7, max_frames=40)
    together = generate_batch(model, batch)
    assert_equal(together, [generate(model, request) for request in batch])
    assert_equal(generate_batch(model, batch[::-1]), together[::-1])


def test_generate_batch_when_rows_end_then_they_are_no_longer_computed(build_model, requests, monkeypatch):
    model = frequent_eos(build_model())
    sizes = []
    model.ar.predict_layer.register_forward_hook(lambda _module, _args, logits: sizes.append(len(logits)))
    batch = requests(max_frames=150)
    results = generate_batch(model, batch)
    lens = [len(result.codes) for result in results]
    assert len(set(lens)) == 4
    assert {result.ended for result in results} == {"eos"}
    assert sizes == [sum(frames >= step for frames in lens) for step in range(max(lens) + 1)]


@pytest.mark.parametrize("check_steps", [2, 8])
def test_generate_batch_when_ends_are_looked_for_now_and_then_then_codes_are_the_same(
    build_model, requests, monkeypatch, check_steps
):
    model, batch = frequent_eos(build_model()), requests(SETTINGS, max_frames=20)
    expected = generate_batch(model, batch)
    assert {result.ended for result in expected} == {"eos", "budget"}
    inner = decoding._ArDecoding._prefill

    def prefill(self, model):
        self.check_steps = check_steps
        self.codes = torch.cat([self.codes, self.codes[:, : check_steps - 1]], dim=1)
        self.log_probs = torch.cat([self.log_probs, self.log_probs[:, : check_steps - 1]], dim=1)
        inner(self, model)

    monkeypatch.setattr(decoding._ArDecoding, "_prefill", prefill)
    assert_equal(generate_batch(model, batch), expected)


def test_decode_first_when_requests_differ_in_their_draws_only_then_text_and_prompt_are_read_once(
    build_model, requests, monkeypatch
):
    model = build_model()
    one, other = requests()[:2]
    batch = [replace(one, seed=seed) for seed in (3, 4, 5)] + [other, replace(one, seed=3, top_k=2)]
    read = []
    inner = model.ar.embed_text
    monkeypatch.setattr(model.ar, "embed_text", lambda *args: read.append(len(args[0])) or inner(*args))
    together = decode_first(model, batch)
    assert read == [2]
    for request, first in zip(batch, together, strict=True):
        assert torch.equal(decode_first(model, [request])[0].codes, first.codes)
    assert not torch.equal(together[0].codes, together[1].codes)


def test_generate_when_drawing_then_the_mean_log_probability_is_the_models_own(build_model, requests):
    model, request = build_model(), requests()[0]
    result = generate(model, replace(request, temperature=3.0, top_k=40, repetition_penalty=2.0))
    whole = torch.cat([request.prompt_codes, result.codes])[None]
    language = torch.tensor([[2] * 3 + [0] * 6])
    with torch.no_grad():
        logits = model.ar_loss(
            request.text[None], torch.tensor([9]), whole, torch.tensor([whole.shape[1]]), language
        ).logits[0, 6:-1]
    expected = logits.log_softmax(-1).gather(-1, result.codes[:, :1]).mean()
    assert result.mean_log_prob == pytest.approx(expected.item(), abs=1e-4)


def test_generate_batch_of_nothing_is_nothing(build_model):
    assert generate_batch(build_model(num_layers=1), []) == []


def test_generate_batch_when_one_row_says_nothing_then_the_others_are_filled(build_model, requests):
    model = build_model(num_layers=1)
    batch = requests(top_k=1)[:2]
    expected = [generate(model, request) for request in batch]
    inner = decode_first(model, batch)
    empty = replace(inner[0], codes=inner[0].codes[:0])
    filled = decoding.fill_codebooks(model, batch, [empty.codes, inner[1].codes])
    assert filled[0].shape == (0, 8)
    assert torch.equal(filled[1], expected[1].codes)


def test_generate_batch_of_the_reference_cases_when_greedy_then_codebook_0_is_that_of_each_alone(shared):
    cases = json.loads((shared / "reference" / "generate_tiny.json").read_text())
    tensors = load_file(shared / "reference" / "generate_tiny.safetensors")
    model = vallex.load_model(shared / "reference" / "tiny_released.pt")
    batch = [
        GenerateRequest(
            text=tensors[f"{i}.text"],
            prompt_codes=tensors[f"{i}.prompt_codes"],
            num_prompt_text=case["num_prompt_text"],
            prompt_language=case["prompt_language"],
            text_language=case["text_language"],
            top_k=1,
        )
        for i, case in enumerate(cases)
    ]
    results = generate_batch(model, batch)
    for i, result in enumerate(results):
        expected = tensors[f"{i}.codes"]
        assert torch.equal(result.codes[:, 0], expected[:, 0]), i
        assert (result.codes == expected).float().mean() >= 0.995, i
