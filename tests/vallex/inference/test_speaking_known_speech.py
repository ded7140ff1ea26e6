"""A small model that knows published prompts by heart says them: continued, best of several, many at once."""

from dataclasses import replace

import pytest
import torch

import vallex
from vallex.inference.prompts import load_prompt
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.text import PhonemeEncoding, PhonemeTokenizer

KNOWN = ("librispeech_1", "paimon", "cafe", "seel", "vctk_4", "yaesakura")
"""English, Chinese and Japanese."""


class Vocoder:
    is_toy = True
    name = "count"

    def decode(self, codes):
        return codes[..., 0].repeat_interleave(320, dim=1).float()


class PromptTokenizer(PhonemeTokenizer):
    """Reads the name of a prompt as the phonemes that were published with it: their letters were not."""

    def __init__(self, prompts):
        super().__init__()
        self.prompts = prompts

    def encode(self, text, language=None):
        prompt = self.prompts[text]
        ids = prompt.text.tolist()
        return PhonemeEncoding(
            ids=ids,
            languages=[prompt.language] * len(ids),
            phonemes="",
            unknown=[],
            unknown_words=[],
            dropped=[],
        )


@pytest.fixture(scope="module")
def prompts(shared):
    return {name: load_prompt(shared / "data" / "prompts" / f"{name}.npz") for name in KNOWN}


@pytest.fixture(scope="module")
def synthesizer(shared, prompts):
    model = vallex.load_model(shared / "reference" / "tiny_released.pt")
    return Synthesizer(model, Vocoder(), PromptTokenizer(prompts))


def share_alike(codes, expected):
    assert codes.shape == expected.shape
    return float((codes == expected).float().mean())


@pytest.mark.parametrize("name", KNOWN)
def test_continue_speech_of_known_speech_gives_the_rest_of_it(synthesizer, prompts, name):
    codes = prompts[name].codes
    speech = synthesizer.continue_speech(name, codes[: len(codes) // 2], SpeakSettings(top_k=1))
    assert (speech.ended, speech.num_redraws) == ("eos", 0)
    assert torch.equal(speech.codes[:, 0], codes[:, 0])
    assert share_alike(speech.codes, codes) > 0.98


def test_speak_many_says_each_known_text_to_its_end_at_once(synthesizer, prompts):
    settings = SpeakSettings(top_k=1)
    speeches = synthesizer.speak_many([(name, None) for name in KNOWN], settings)
    for name, speech in zip(KNOWN, speeches, strict=True):
        assert (speech.ended, speech.num_redraws) == ("eos", 0), name
        alone = synthesizer.speak(name, None, settings)
        assert torch.equal(speech.codes[:, 0], alone.codes[:, 0]), name
        assert share_alike(speech.codes[:, :1], prompts[name].codes[:, :1]) > 0.9, name


def test_speak_best_of_several_hot_draws_is_nearer_to_what_is_known(synthesizer, prompts):
    codes = prompts["paimon"].codes[:, 0]
    hot = SpeakSettings(temperature=3.0, max_redraws=0)
    drawn = [synthesizer.decode_many([("paimon", None)], replace(hot, seed=seed))[0] for seed in range(6)]
    [best] = synthesizer.decode_many([("paimon", None)], replace(hot, best_of=6))
    assert len({one.mean_log_prob for one in drawn}) == 6
    well = [one for one in drawn if one.ended == "eos"]
    likeliest = max(well or drawn, key=lambda one: one.mean_log_prob)
    assert (best.seed, best.mean_log_prob) == (
        likeliest.seed,
        pytest.approx(likeliest.mean_log_prob, abs=1e-4),
    )

    def hits(one):
        num = min(len(one.codes), len(codes))
        return float((one.codes[:num, 0] == codes[:num]).float().mean())

    assert hits(best) >= sorted(hits(one) for one in well or drawn)[len(well or drawn) // 2]
