"""Several prompts as one voice, and the beginning of a recording."""

from dataclasses import replace

import pytest
import soundfile
import torch

from vallex.codec import load_codec
from vallex.errors import PromptError
from vallex.inference.prompts import VoicePrompt, save_prompt
from vallex.inference.voices import beginning_of, join_voices, obtain_voices
from vallex.text import PhonemeTokenizer

SAYINGS = {
    "en": ("Good morning, Anna.", "How are you today?", " "),
    "zh": ("你好。", "今天天气很好。", ""),
    "ja": ("こんにちは。", "元気ですか。", ""),
}


@pytest.fixture(scope="module")
def tokenizer():
    return PhonemeTokenizer()


@pytest.fixture(scope="module")
def codec():
    return load_codec(toy=True)


def voice_of(encoding, transcript, num_frames, seed=0):
    codes = torch.randint(0, 1024, (num_frames, 8), generator=torch.Generator().manual_seed(seed))
    [language] = set(encoding.languages)
    return VoicePrompt(codes=codes, text=torch.tensor(encoding.ids), language=language, transcript=transcript)


@pytest.fixture
def pair(tokenizer):
    """Two voices in a language, of 1 s and 2 s."""

    def make(language="en"):
        return [
            voice_of(tokenizer.encode(text, language), text, num_frames, seed)
            for seed, (text, num_frames) in enumerate(zip(SAYINGS[language][:2], (75, 150), strict=True))
        ]

    return make


@pytest.fixture
def noise(tmp_path):
    """Writes seconds of noise as a wav and returns its path."""

    def write(seconds, name="anna.wav"):
        wav = torch.rand(round(24000 * seconds), generator=torch.Generator().manual_seed(0)) - 0.5
        soundfile.write(tmp_path / name, wav.numpy(), 24000)
        return tmp_path / name

    return write


@pytest.mark.parametrize("language", SAYINGS)
def test_join_voices_reads_as_their_texts_written_as_one(pair, tokenizer, language):
    first, second = pair(language)
    joined = join_voices([first, second], ["a", "b"])
    whole, rest, between = SAYINGS[language]
    assert joined.text.tolist() == tokenizer.encode(whole + between + rest, language).ids
    assert torch.equal(joined.codes, torch.cat([first.codes, second.codes]))
    assert (joined.language, joined.seconds) == (language, 3.0)
    assert joined.transcript == f"{whole} {rest}"


def test_join_voices_of_one_is_that_one(pair):
    [voice, _] = pair()
    assert join_voices([voice], ["a"]) is voice


def test_join_voices_keeps_what_is_known_of_all_only(pair):
    first, second = pair()
    joined = join_voices([first, replace(second, transcript="", toy=True)], ["a", "b"])
    assert (joined.transcript, joined.toy) == ("", True)


def test_join_voices_of_two_languages_and_too_long_says_both(pair):
    [first, _], [other, _] = pair("en"), pair("ja")
    long = replace(other, codes=torch.zeros(15 * 75, 8, dtype=torch.long))
    expected = r"a, b: they are in en and ja; .* one language; together they last 16\.0 s; .* at most 15 s"
    with pytest.raises(PromptError, match=expected):
        join_voices([first, long], ["a", "b"])


def test_obtain_voices_joins_what_is_saved(pair, tokenizer, codec, tmp_path):
    voices = pair()
    for name, voice in zip("ab", voices, strict=True):
        save_prompt(tmp_path / f"{name}.npz", voice)
    found = obtain_voices(["a", "b"], None, codec, tokenizer, tmp_path)
    assert torch.equal(found.codes, torch.cat([voice.codes for voice in voices]))


def test_obtain_voices_with_one_text_for_several_says_where_texts_belong(tokenizer, codec):
    with pytest.raises(
        PromptError, match=r"--text is what one recording says, and there are 2: put the words"
    ):
        obtain_voices(["a", "b"], "Hi.", codec, tokenizer)


def test_obtain_voices_with_a_text_for_a_saved_one_says_so(pair, tokenizer, codec, tmp_path):
    save_prompt(tmp_path / "a.npz", pair()[0])
    with pytest.raises(PromptError, match=r"a\.npz: a saved voice knows what it says; leave its text out"):
        obtain_voices(["a"], "Hi.", codec, tokenizer, tmp_path)


def test_beginning_of_a_recording_is_the_beginning_of_its_codes(noise, codec):
    path = noise(2.0)
    beginning = beginning_of(path, 1.0, codec)
    assert beginning.shape == (75, 8)
    assert torch.equal(beginning, beginning_of(path, 2.0, codec)[:75])


@pytest.mark.parametrize(("keep_sec", "longest"), [(0.0, "2.0"), (0.4, "2.0"), (2.1, "2.0")])
def test_beginning_of_more_or_less_than_can_be_kept_says_what_can(noise, codec, keep_sec, longest):
    with pytest.raises(PromptError, match=rf"its first {keep_sec:g} s .* keep 0\.5 to {longest} s of it"):
        beginning_of(noise(2.0), keep_sec, codec)
