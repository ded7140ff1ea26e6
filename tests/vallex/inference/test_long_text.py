"""Long text: which prompt each chunk gets, what is joined, and that short text is spoken as it always was."""

from dataclasses import replace

import pytest
import torch

from vallex.errors import ConfigError, PromptError, TextError
from vallex.inference.long_text import MAX_TOTAL_SEC, chunk_texts, speak_long
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, SpokenCodes, Synthesizer
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.text import PhonemeTokenizer

LONG = "The quick brown fox jumps over the lazy dog near the river. " * 12
SETTINGS = SpeakSettings(seed=3)


class CountingVocoder:
    """Sound that is the frame's own code of codebook 0, 320 times; counts how often it was asked."""

    is_toy = True
    name = "counting"
    num_calls = 0

    def decode(self, codes):
        self.num_calls += 1
        return codes[..., 0].float().repeat_interleave(320, dim=1)


class ScriptedSynthesizer(Synthesizer):
    """Speaks chunk i as frames of the code i, six frames a phoneme, and keeps what it was asked."""

    def __init__(self, ends=(), frames_per_phoneme=6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VALLE(ModelConfig(d_model=32, num_heads=2, num_layers=1)).eval()
        super().__init__(model, CountingVocoder(), PhonemeTokenizer())
        self.asked = []
        self.batches = []
        self.ends = dict(ends)
        self.frames_per_phoneme = frames_per_phoneme

    def decode_many(self, texts, settings, batch_rows=8):
        self.batches.append(len(texts))
        return [self.decode(text, voice, settings) for text, voice in texts]

    def decode(self, text, voice, settings):
        number = len(self.asked)
        self.asked.append((text, voice, settings))
        encoding = self.tokenizer.encode(text, language=settings.language)
        ended = self.ends.get(number, "eos")
        num_frames = 3 if ended == "empty" else self.frames_per_phoneme * len(encoding.ids)
        return SpokenCodes(
            codes=torch.full((num_frames, 8), number),
            ended=ended,
            seed=settings.seed + 1,
            num_redraws=1,
            text=encoding,
            mean_log_prob=-1.0 - number,
        )


@pytest.fixture
def voice():
    return VoicePrompt(
        codes=torch.full((225, 8), 999), text=torch.tensor([7, 8, 9]), language="en", transcript="hi"
    )


def prompts_of(synthesizer):
    """The code that each chunk's prompt is made of: 999 is the voice, i the chunk i, None none."""
    return [None if voice is None else int(voice.codes[0, 0]) for _, voice, _ in synthesizer.asked]


def test_speak_long_when_text_fits_then_is_one_chunk_spoken_as_it_is(voice):
    for mode in ("fixed", "sliding"):
        synthesizer = ScriptedSynthesizer()
        speech = speak_long(synthesizer, "Hello there.", voice, SETTINGS, mode)
        assert synthesizer.asked == [("Hello there.", voice, SETTINGS)]
        assert speech.chunks == (speech.whole,)
        assert speech.whole.seed == 4


def test_speak_long_when_fixed_then_every_chunk_has_the_same_prompt(voice):
    synthesizer = ScriptedSynthesizer()
    speech = speak_long(synthesizer, LONG, voice, SETTINGS)
    assert len(speech.chunks) > 1
    assert prompts_of(synthesizer) == [999] * len(speech.chunks)
    assert all(text.startswith("[EN]") and text.endswith("[EN]") for text, _, _ in synthesizer.asked)
    assert synthesizer.batches == [len(speech.chunks)]
    assert speech.texts == tuple(text for text, _, _ in synthesizer.asked)


def test_speak_long_when_sliding_then_a_chunk_is_the_prompt_of_the_next(voice):
    synthesizer = ScriptedSynthesizer()
    speech = speak_long(synthesizer, LONG, voice, SETTINGS, "sliding")
    count = len(speech.chunks)
    assert count > 2
    assert prompts_of(synthesizer) == [999, *range(count - 1)]
    for chunk, (_, prompt, _) in zip(speech.chunks, synthesizer.asked[1:], strict=False):
        assert torch.equal(prompt.codes, chunk.codes)
        assert prompt.text.tolist() == chunk.text.ids


@pytest.mark.parametrize(("mode", "expected"), [("fixed", [None, 0, 0, 0]), ("sliding", [None, 0, 1, 2])])
def test_speak_long_without_a_voice_then_the_first_chunk_gives_it(mode, expected):
    synthesizer = ScriptedSynthesizer()
    speak_long(synthesizer, LONG, None, SETTINGS, mode)
    assert prompts_of(synthesizer)[:4] == expected[: len(synthesizer.asked)]
    assert len(synthesizer.asked) > 2
    left = len(synthesizer.asked) - 1
    assert synthesizer.batches == [1, left] if mode == "fixed" else [1] * (left + 1)


def test_speak_long_when_a_chunk_is_empty_then_the_rest_is_spoken_and_the_whole_says_so(voice):
    synthesizer = ScriptedSynthesizer(ends={1: "empty"})
    speech = speak_long(synthesizer, LONG, voice, SETTINGS)
    assert speech.whole.ended == "empty"
    assert set(speech.whole.codes[:, 0].tolist()) == set(range(len(speech.chunks))) - {1}


def test_speak_long_when_every_chunk_is_empty_then_there_is_no_sound(voice):
    synthesizer = ScriptedSynthesizer(ends=dict.fromkeys(range(20), "empty"))
    speech = speak_long(synthesizer, LONG, voice, SETTINGS)
    assert (speech.whole.ended, len(speech.whole.codes), len(speech.whole.wav)) == ("empty", 0, 0)
    assert speech.whole.mean_log_prob == float("-inf")


def test_speak_long_then_the_mean_log_probability_is_that_of_all_frames(voice):
    speech = speak_long(ScriptedSynthesizer(), LONG, voice, SETTINGS)
    codes = speech.whole.codes[:, 0]
    assert speech.whole.mean_log_prob == pytest.approx(float((-1.0 - codes).mean()), rel=1e-4)


def test_speak_long_when_a_chunk_is_cut_off_then_it_is_no_prompt_and_the_whole_says_so(voice):
    synthesizer = ScriptedSynthesizer(ends={1: "budget"})
    speech = speak_long(synthesizer, LONG, voice, SETTINGS, "sliding")
    assert prompts_of(synthesizer)[:4] == [999, 0, 0, 2]
    assert speech.whole.ended == "budget"


def test_speak_long_when_a_chunk_runs_on_then_it_is_no_prompt(voice):
    synthesizer = ScriptedSynthesizer(frames_per_phoneme=100)
    speak_long(synthesizer, LONG, voice, SETTINGS, "sliding")
    assert set(prompts_of(synthesizer)) == {999}


def test_speak_long_then_the_whole_is_all_codes_made_sound_once(voice):
    synthesizer = ScriptedSynthesizer()
    speech = speak_long(synthesizer, LONG, voice, SETTINGS)
    assert torch.equal(speech.whole.codes, torch.cat([chunk.codes for chunk in speech.chunks]))
    assert torch.equal(speech.whole.wav, speech.whole.codes[:, 0].float().repeat_interleave(320))
    assert synthesizer.vocoder.num_calls == 1
    assert (speech.whole.ended, speech.whole.seed) == ("eos", 3)
    assert speech.whole.num_redraws == len(speech.chunks)
    assert speech.whole.text == PhonemeTokenizer().encode(LONG, language="auto")


def test_speak_long_when_a_chunk_mixes_languages_then_its_prompt_has_the_commoner(voice):
    text = "[EN]Yes.[EN][ZH]" + "今天天气很好,我们一起去公园散步吧。" * 14 + "[ZH]"
    synthesizer = ScriptedSynthesizer()
    speak_long(synthesizer, text, voice, SETTINGS, "sliding")
    assert [voice.language for _, voice, _ in synthesizer.asked][:2] == ["en", "zh"]


@pytest.mark.parametrize("mode", ["fixed", "sliding"])
@pytest.mark.parametrize("with_voice", [True, False])
def test_chunk_texts_leave_room_for_the_prompt_that_each_will_have(voice, mode, with_voice):
    synthesizer, voice = ScriptedSynthesizer(), voice if with_voice else None
    texts = chunk_texts(synthesizer, LONG, voice, SETTINGS, mode)
    seconds = [len(synthesizer.tokenizer.encode(text).ids) / 8.0 for text in texts]
    before = [0.0 if voice is None else voice.seconds, *seconds[:-1]]
    if mode == "fixed":
        before = [before[0]] + [before[0] or seconds[0]] * (len(texts) - 1)
    assert len(texts) > 1
    assert all(a + b <= MAX_TOTAL_SEC for a, b in zip(before, seconds, strict=True))


def test_speak_long_when_the_voice_leaves_no_room_then_says_how_long_it_may_be(voice):
    long_voice = replace(voice, codes=torch.zeros(20 * 75, 8, dtype=torch.long))
    with pytest.raises(PromptError, match=r"the voice lasts 20\.0 s; .* Cut the voice to 18 s or less"):
        speak_long(ScriptedSynthesizer(), LONG, long_voice, SETTINGS)
    assert len(speak_long(ScriptedSynthesizer(), "Hello.", long_voice, SETTINGS).chunks) == 1


def test_speak_long_when_mode_is_unknown_then_lists_them(voice):
    with pytest.raises(ConfigError, match="long is 'both'; it must be one of fixed, sliding"):
        speak_long(ScriptedSynthesizer(), "Hello.", voice, SETTINGS, "both")


def test_speak_long_when_text_is_faulty_then_nothing_is_spoken(voice):
    synthesizer = ScriptedSynthesizer()
    with pytest.raises(TextError, match=r"\[EN\].* is not closed"):
        speak_long(synthesizer, LONG + "[EN]Hello", voice, SETTINGS)
    assert synthesizer.asked == []
