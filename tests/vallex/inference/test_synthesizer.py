"""Speaking: collation as in training, redraws, seeds, what does not fit; and finding a voice."""

import pytest
import torch

from vallex.errors import CheckpointError, PromptError, TextError, TrainingError
from vallex.inference import synthesizer as synthesizer_module
from vallex.inference.prompts import VoicePrompt, save_prompt
from vallex.inference.synthesizer import MIN_FRAMES, SpeakSettings, Synthesizer
from vallex.inference.voices import find_transcript, obtain_voice
from vallex.languages import Language
from vallex.model.config import ModelConfig
from vallex.model.decoding import FirstCodes
from vallex.model.network import VALLE
from vallex.model.requests import language_ids
from vallex.text import PhonemeTokenizer, TextCollator

TEXT = "[ZH]你好[ZH][EN]Hi.[EN]"


class RampVocoder:
    """320 samples a frame, whose values count the frames."""

    is_toy = True
    name = "ramp"

    def decode(self, codes):
        return torch.arange(codes.shape[1]).repeat_interleave(320).float().expand(len(codes), -1)


class Codec:
    """What a voice is looked up for."""

    def __init__(self, is_toy: bool):
        self.is_toy = is_toy


@pytest.fixture(scope="module")
def tokenizer():
    return PhonemeTokenizer()


@pytest.fixture(scope="module")
def build(tokenizer):
    """A synthesizer with a tiny random model; keywords are ModelConfig's."""

    def make(**settings) -> Synthesizer:
        config = ModelConfig(d_model=32, num_heads=2, num_layers=1, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VALLE(config).eval()
        return Synthesizer(model, RampVocoder(), tokenizer)

    return make


@pytest.fixture
def voice():
    codes = torch.randint(0, 1024, (9, 8), generator=torch.Generator().manual_seed(0))
    return VoicePrompt(codes=codes, text=torch.tensor([7, 8, 9, 10]), language=Language.JA)


@pytest.fixture
def frames_by_seed(monkeypatch):
    """Replaces decoding: a seed gives as many frames as are set for it; returns the seeds that were tried."""

    def replace_with(frames: dict[int, int]) -> list[int]:
        tried = []

        def decode_first(model, requests):
            tried.extend(request.seed for request in requests)
            return [
                FirstCodes(codes=draws[request.seed], ended="eos", mean_log_prob=float(request.seed))
                for request in requests
            ]

        # codes without a loop in them
        steps = torch.arange(1024) * 5 % 1024
        draws = {seed: (steps[:count] + seed) % 1024 for seed, count in frames.items()}
        monkeypatch.setattr(synthesizer_module, "decode_first", decode_first)
        return tried

    return replace_with


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("with_voice", [False, True])
def test_request_when_collated_then_is_the_row_of_training(build, tokenizer, voice, bos, eos, with_voice):
    synthesizer = build(text_bos=bos, text_eos=eos)
    voice = voice if with_voice else None
    encoding = tokenizer.encode(TEXT)
    assert set(encoding.languages) == {"zh", "en"}
    request = synthesizer.request(encoding, voice, SpeakSettings(), seed=0)

    collator = TextCollator(bos=bos, eos=eos)
    prompt_ids, prompt_languages = (voice.text.tolist(), ["ja"] * 4) if voice else ([], [])
    trained_text, _ = collator([prompt_ids + encoding.ids])
    trained_languages = collator.languages([prompt_languages + encoding.languages])
    assert request.text.tolist() == trained_text[0].tolist()
    assert language_ids(synthesizer.model.config, request).tolist() == trained_languages.tolist()
    assert request.num_prompt_text == (4 + bos if with_voice else 0)


@pytest.mark.parametrize("with_voice", [False, True])
def test_speak_with_an_accent_reads_as_written_and_speaks_as_told(build, tokenizer, voice, with_voice):
    synthesizer, voice = build(text_bos=True, text_eos=True), voice if with_voice else None
    plain, accented = (synthesizer.encode(TEXT, SpeakSettings(accent=accent)) for accent in (None, "ja"))
    assert plain == tokenizer.encode(TEXT)
    assert accented.ids == plain.ids
    assert set(accented.languages) == {"ja"}
    request = synthesizer.request(accented, voice, SpeakSettings(), seed=0)
    assert set(request.text_language) == {"ja"}
    said = [synthesizer.speak(TEXT, voice, SpeakSettings(accent=accent)).codes for accent in ("ja", "zh")]
    assert not torch.equal(*said)


def test_speak_with_an_accent_of_no_language_names_those_that_are_known(build, voice):
    with pytest.raises(TextError, match="language xx is not known to this model; it speaks en, zh, ja"):
        build().speak("Hi.", voice, SpeakSettings(accent="xx"))


@pytest.mark.parametrize("prefix_mode", [0, 1, 2, 4])
@pytest.mark.parametrize("marked", [False, True])
def test_speak_when_the_nar_reads_the_target_only_then_speaks_all_the_same(build, voice, prefix_mode, marked):
    speech = build(prefix_mode=prefix_mode, text_bos=marked, text_eos=marked).speak(
        TEXT, voice, SpeakSettings(seed=1)
    )
    assert speech.codes.shape[1] == 8
    assert len(speech.codes) >= MIN_FRAMES


def test_speak_when_settings_are_given_then_they_reach_the_decoder(build, tokenizer, voice):
    settings = SpeakSettings(temperature=0.7, top_k=5, top_p=0.9)
    request = build().request(tokenizer.encode(TEXT), voice, settings, seed=3)
    assert (request.temperature, request.top_k, request.top_p, request.seed) == (0.7, 5, 0.9, 3)
    assert torch.equal(request.prompt_codes, voice.codes)
    assert request.prompt_language == "ja"


def test_speak_when_the_seed_is_the_same_then_so_is_the_speech(build, voice):
    synthesizer = build()
    first, again, other = (synthesizer.speak("Hi.", voice, SpeakSettings(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.wav, again.wav)
    assert not torch.equal(first.codes[:50], other.codes[:50])


def test_speak_when_without_a_voice_then_makes_one_up(build):
    speech = build().speak("Hi.", None, SpeakSettings(seed=1))
    assert speech.wav.shape == (len(speech.codes) * 320,)
    assert speech.ended in ("eos", "budget")
    assert speech.text.languages[0] == "en"


def test_speak_when_results_are_too_short_then_draws_again_and_counts(build, voice, frames_by_seed):
    tried = frames_by_seed({5: 0, 6: MIN_FRAMES - 1, 7: MIN_FRAMES, 8: 100})
    speech = build().speak("Hi.", voice, SpeakSettings(seed=5))
    assert tried == [5, 6, 7]
    assert (speech.num_redraws, speech.seed, len(speech.codes)) == (2, 7, MIN_FRAMES)
    assert len(speech.wav) / 24000 > 0.1


def test_speak_when_the_first_result_will_do_then_nothing_is_drawn_again(build, voice, frames_by_seed):
    tried = frames_by_seed({0: 20})
    speech = build().speak("Hi.", voice, SpeakSettings())
    assert (tried, speech.num_redraws, speech.seed) == ([0], 0, 0)


def test_speak_when_every_result_is_empty_then_says_what_was_tried(build, voice, frames_by_seed):
    tried = frames_by_seed(dict.fromkeys(range(10), 0))
    with pytest.raises(TrainingError, match=r"nothing was said: 4 seeds from 5 on ended at once"):
        build().speak("Hi.", voice, SpeakSettings(seed=5))
    assert tried == [5, 6, 7, 8]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}])
def test_speak_when_greedy_and_empty_then_no_other_seed_is_tried(build, voice, frames_by_seed, settings):
    tried = frames_by_seed({5: 0})
    with pytest.raises(TrainingError, match=r"nothing was said: greedy decoding ended at once\. Try --temp"):
        build().speak("Hi.", voice, SpeakSettings(seed=5, **settings))
    assert tried == [5]


def test_voice_when_it_has_four_codebooks_then_is_refused():
    codes = torch.zeros(9, 4, dtype=torch.long)
    with pytest.raises(PromptError, match=r"codes are \[1, 9, 4\]; this model needs 8 codebooks"):
        VoicePrompt(codes=codes, text=torch.tensor([7]), language=Language.EN)


def test_synthesizer_when_the_model_was_trained_on_another_tokenizer_then_names_both(build, tokenizer):
    model = build().model
    model.provenance = {"tokenizer": "f" * 64}
    expected = f"phonemes of tokenizer ffffffffffff, this is tokenizer {tokenizer.fingerprint[:12]}"
    with pytest.raises(CheckpointError, match=expected):
        Synthesizer(model, RampVocoder(), tokenizer)
    model.provenance = {"tokenizer": tokenizer.fingerprint}
    Synthesizer(model, RampVocoder(), tokenizer)


@pytest.mark.parametrize("is_toy", [False, True])
def test_obtain_voice_when_saved_then_is_found_by_name_and_by_path(tmp_path, voice, tokenizer, is_toy):
    save_prompt(tmp_path / "anna.npz", voice)
    for name in ("anna", str(tmp_path / "anna.npz")):
        found = obtain_voice(name, None, Codec(is_toy), tokenizer, prompts_dir=tmp_path)
        assert torch.equal(found.codes, voice.codes)


def test_obtain_voice_when_toy_then_only_the_toy_codec_takes_it(tmp_path, voice, tokenizer):
    toy = VoicePrompt(codes=voice.codes, text=voice.text, language=voice.language, toy=True)
    save_prompt(tmp_path / "anna.npz", toy)
    with pytest.raises(PromptError, match=r"anna\.npz: made with toy weights, .*vallex voice make anna WAV"):
        obtain_voice("anna", None, Codec(is_toy=False), tokenizer, prompts_dir=tmp_path)
    assert obtain_voice("anna", None, Codec(is_toy=True), tokenizer, prompts_dir=tmp_path).toy


@pytest.mark.parametrize("beside", ["my.voice.normalized.txt", "my.voice.original.txt", "my.voice.txt"])
def test_find_transcript_when_beside_a_recording_then_is_read(tmp_path, beside):
    (tmp_path / "my.voice.wav").touch()
    (tmp_path / beside).write_text(" Grüezi.\n", encoding="utf-8")
    (tmp_path / "my.txt").write_text("Another recording's.", encoding="utf-8")
    assert find_transcript(tmp_path / "my.voice.wav", None) == "Grüezi."
    assert find_transcript(tmp_path / "my.voice.wav", "As given.") == "As given."


def test_find_transcript_when_there_is_none_then_says_where_it_could_be(tmp_path):
    (tmp_path / "anna.wav").touch()
    with pytest.raises(PromptError, match=r"anna\.wav: what is said in it is not known: .* anna\.txt beside"):
        find_transcript(tmp_path / "anna.wav", None)


def test_find_transcript_when_it_is_no_utf8_then_says_so(tmp_path):
    (tmp_path / "anna.wav").touch()
    (tmp_path / "anna.txt").write_bytes("Grüezi.".encode("latin-1"))
    with pytest.raises(PromptError, match=r"anna\.txt: not UTF-8 text \(.*\); save it as UTF-8"):
        find_transcript(tmp_path / "anna.wav", None)
