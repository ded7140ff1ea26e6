"""Guards, redraws, best of several, batches and continuations: what the synthesizer puts around decoding."""

import pytest
import torch

from vallex.errors import ConfigError, TrainingError
from vallex.inference import synthesizer as module
from vallex.inference.guards import frame_budget
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model.config import EOS_ID, ModelConfig
from vallex.model.decoding import FirstCodes
from vallex.model.network import VALLE
from vallex.text import PhonemeTokenizer

GOOD = torch.arange(1024) * 5 % 1024


class Vocoder:
    is_toy = True
    name = "count"

    def decode(self, codes):
        return codes[..., 0].repeat_interleave(320, dim=1).float()


@pytest.fixture(scope="module")
def synthesizer():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VALLE(ModelConfig(d_model=32, num_heads=2, num_layers=1)).eval()
        torch.nn.init.normal_(model.ar.audio_embedding.weight)
        torch.nn.init.normal_(model.ar.text_embedding.weight)
        with torch.no_grad():
            model.ar.decoder.norm.bias.fill_(1.0)
            model.ar.predict_layer.weight[EOS_ID].fill_(4.0 / 32)
    return Synthesizer(model, Vocoder(), PhonemeTokenizer())


@pytest.fixture
def voice():
    codes = torch.randint(0, 1024, (9, 8), generator=torch.Generator().manual_seed(0))
    return VoicePrompt(codes=codes, text=torch.tensor([7, 8, 9, 10]), language="ja")


@pytest.fixture
def draws(monkeypatch):
    """Replaces decoding by {seed: (kind, frames, ended, mean log probability)}; returns what was tried."""
    codes_of = {
        "good": lambda frames: GOOD[:frames],
        "loop": lambda frames: GOOD[:10].repeat(frames // 10),
    }

    def replace_with(by_seed):
        tried = []

        def decode_first(model, requests):
            tried.append([request.seed for request in requests])
            return [
                FirstCodes(codes=codes_of[kind](frames), ended=ended, mean_log_prob=log_prob)
                for kind, frames, ended, log_prob in (by_seed[request.seed] for request in requests)
            ]

        monkeypatch.setattr(module, "decode_first", decode_first)
        return tried

    return replace_with


def test_speak_when_draws_run_on_loop_or_are_empty_then_draws_again_until_one_ends(synthesizer, voice, draws):
    tried = draws(
        {
            3: ("good", 90, "budget", -1.0),
            4: ("loop", 90, "eos", -0.1),
            5: ("good", 3, "eos", -0.1),
            6: ("good", 60, "eos", -5.0),
        }
    )
    speech = synthesizer.speak("Hi.", voice, SpeakSettings(seed=3))
    assert tried == [[3], [4], [5], [6]]
    assert (speech.ended, speech.seed, speech.num_redraws, len(speech.codes)) == ("eos", 6, 3, 60)
    assert speech.mean_log_prob == -5.0


@pytest.mark.parametrize(
    ("by_seed", "expected"),
    [
        ([("loop", 90, "eos", -0.1), ("good", 90, "budget", -3.0), ("good", 2, "eos", 0.0)], ("budget", 1)),
        ([("loop", 90, "eos", -0.5), ("good", 2, "eos", 0.0), ("loop", 80, "budget", -0.4)], ("loop", 2)),
        (
            [("good", 90, "budget", -2.0), ("good", 80, "budget", -1.0), ("good", 9, "budget", -3.0)],
            ("budget", 1),
        ),
    ],
)
def test_speak_when_no_draw_ends_then_gives_the_best_and_says_how_it_ended(
    synthesizer, voice, draws, by_seed, expected
):
    tried = draws(dict(enumerate(by_seed)))
    speech = synthesizer.speak("Hi.", voice, SpeakSettings(max_redraws=2))
    assert tried == [[0], [1], [2]]
    assert (speech.ended, speech.seed) == expected
    assert speech.num_redraws == 2


def test_speak_best_of_three_takes_the_likeliest_of_those_that_ended(synthesizer, voice, draws):
    tried = draws(
        {
            0: ("good", 50, "eos", -3.0),
            1: ("good", 40, "eos", -2.0),
            2: ("loop", 90, "eos", -0.1),
        }
    )
    speech = synthesizer.speak("Hi.", voice, SpeakSettings(best_of=3))
    assert tried == [[0, 1, 2]]
    assert (speech.seed, len(speech.codes), speech.mean_log_prob) == (1, 40, -2.0)
    assert speech.num_redraws == 0


def test_speak_best_of_when_none_ended_then_draws_as_many_again(synthesizer, voice, draws):
    tried = draws(
        dict.fromkeys((5, 6), ("good", 80, "budget", -1.0))
        | {7: ("good", 30, "eos", -4.0), 8: ("good", 31, "eos", -3.0)}
    )
    speech = synthesizer.speak("Hi.", voice, SpeakSettings(seed=5, best_of=2))
    assert tried == [[5, 6], [7, 8]]
    assert (speech.seed, speech.num_redraws) == (8, 1)


def test_speak_that_is_greedy_draws_once_whatever_comes(synthesizer, voice, draws):
    tried = draws({0: ("loop", 90, "budget", -1.0)})
    speech = synthesizer.speak("Hi.", voice, SpeakSettings(top_k=1, best_of=4))
    assert (tried, speech.ended) == ([[0]], "loop")


def test_speak_many_draws_again_for_those_only_that_did_not_end(synthesizer, voice, draws, monkeypatch):
    tried = draws({0: ("good", 3, "eos", -1.0), 1: ("good", 20, "eos", -1.0)})
    inner = module.decode_first
    requests_of = []

    def decode_first(model, requests):
        lens = [len(request.text) for request in requests]
        requests_of.append(lens)
        results = inner(model, requests)
        well = FirstCodes(codes=GOOD[:25], ended="eos", mean_log_prob=-1.0)
        # of several, only the longest ends at once
        return [well if num < max(lens) else one for num, one in zip(lens, results, strict=True)]

    monkeypatch.setattr(module, "decode_first", decode_first)
    texts = [("Hi.", voice), ("Good morning.", None), ("No.", voice)]
    speeches = synthesizer.speak_many(texts, SpeakSettings())
    assert tried == [[0, 0, 0], [1]]
    assert requests_of[0] == sorted(requests_of[0])
    assert requests_of[1] == [requests_of[0][2]]
    assert [len(speech.codes) for speech in speeches] == [25, 20, 25]
    assert [speech.seed for speech in speeches] == [0, 1, 0]


def test_speak_many_gives_what_each_text_gives_alone(synthesizer, voice):
    texts = [("Hi.", voice), ("Good morning to you.", None), ("[ZH]你好[ZH]", voice), ("No.", None)]
    settings = SpeakSettings(seed=2, best_of=2)
    together = synthesizer.speak_many(texts, settings, batch_rows=5)
    for (text, voice_of), speech in zip(texts, together, strict=True):
        alone = synthesizer.speak(text, voice_of, settings)
        assert torch.equal(alone.codes, speech.codes)
        assert (alone.seed, alone.ended, alone.num_redraws) == (speech.seed, speech.ended, speech.num_redraws)
        assert torch.equal(alone.wav, speech.codes[:, 0].repeat_interleave(320).float())


def test_speak_many_of_what_stays_empty_says_so_and_gives_the_rest(synthesizer, voice, draws):
    draws(dict.fromkeys(range(4), ("good", 3, "eos", -1.0)))
    [speech] = synthesizer.speak_many([("Hi.", voice)], SpeakSettings())
    assert (speech.ended, speech.num_redraws, len(speech.wav)) == ("empty", 3, 0)
    with pytest.raises(TrainingError, match="nothing was said: 4 seeds from 0 on ended at once"):
        synthesizer.speak("Hi.", voice, SpeakSettings())


def test_request_is_cut_off_at_the_budget_of_the_target(synthesizer, voice):
    encoding = synthesizer.tokenizer.encode("Good morning.", "en")
    request = synthesizer.request(encoding, voice, SpeakSettings(), seed=0)
    assert request.max_frames == frame_budget(len(encoding.ids))


def test_settings_of_sampling_reach_the_decoder(synthesizer, voice):
    drawn = {"top_p": 0.8, "repetition_aware": 0.2, "repetition_penalty": 1.4, "temperature": 0.5, "top_k": 9}
    settings = SpeakSettings(**drawn)
    request = synthesizer.request(synthesizer.tokenizer.encode("Hi.", "en"), voice, settings, seed=0)
    assert {name: getattr(request, name) for name in drawn} == drawn


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"best_of": 0}, "best_of is 0 and"),
        ({"max_redraws": -1}, "max_redraws -1; "),
        ({"temperature": -0.5}, "temperature is -0.5; it must be at least 0"),
        ({"top_k": 0, "repetition_aware": 1.0}, "top_k is 0; .*; repetition_aware is 1.0; "),
        ({"repetition_penalty": 0.5}, "repetition_penalty is 0.5; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SpeakSettings(**wrong)


def test_continue_speech_keeps_the_beginning_and_reads_the_whole_text(synthesizer, monkeypatch):
    beginning = torch.randint(0, 1024, (38, 8), generator=torch.Generator().manual_seed(0))
    asked = []
    inner = module.decode_first
    monkeypatch.setattr(
        module, "decode_first", lambda m, requests: asked.extend(requests) or inner(m, requests)
    )
    speech = synthesizer.continue_speech("[ZH]你好[ZH][EN]Hi.[EN]", beginning, SpeakSettings(seed=1))
    encoding = synthesizer.tokenizer.encode("[ZH]你好[ZH][EN]Hi.[EN]")
    request = asked[0]
    assert request.text.tolist() == encoding.ids
    assert request.num_prompt_text == 0
    assert request.text_language == encoding.languages
    assert torch.equal(request.prompt_codes, beginning)
    assert request.max_frames == max(frame_budget(len(encoding.ids)) - 38, 75)
    assert torch.equal(speech.codes[:38], beginning)
    assert len(speech.codes) > 38 + 7
    assert len(speech.wav) == 320 * len(speech.codes)


def test_continue_speech_is_what_generate_gives_from_the_beginning(synthesizer):
    beginning = torch.randint(0, 1024, (20, 8), generator=torch.Generator().manual_seed(0))
    encoding = synthesizer.tokenizer.encode("Good morning to you.", "en")
    settings = SpeakSettings(seed=1, max_redraws=0)
    speech = synthesizer.continue_speech("Good morning to you.", beginning, settings)
    exact = synthesizer.model.generate(
        torch.tensor(encoding.ids),
        beginning,
        0,
        text_language=encoding.languages,
        seed=1,
        max_frames=frame_budget(len(encoding.ids)) - 20,
    )
    assert torch.equal(speech.codes[20:], exact)


def test_continue_speech_where_nothing_follows_says_so(synthesizer, draws):
    draws(dict.fromkeys(range(4), ("good", 3, "eos", -1.0)))
    with pytest.raises(TrainingError, match="nothing was said: 4 seeds from 0 on ended at once"):
        synthesizer.continue_speech("Hi.", torch.zeros(30, 8, dtype=torch.long), SpeakSettings())


def test_speak_when_it_breaks_off_before_its_text_can_be_said_then_is_drawn_again(synthesizer, voice, draws):
    text = "Good morning to you all, and a good evening."
    num_phonemes = len(synthesizer.tokenizer.encode(text, "en").ids)
    draws({0: ("good", num_phonemes - 1, "eos", -1.0), 1: ("good", num_phonemes, "eos", -2.0)})
    speech = synthesizer.speak(text, voice, SpeakSettings())
    assert (speech.ended, speech.seed, speech.num_redraws) == ("eos", 1, 1)
