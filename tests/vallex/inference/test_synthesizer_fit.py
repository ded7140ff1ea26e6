"""What Synthesizer refuses because it cannot be made to sound, and voices in a language that was added."""

import pytest
import torch

from vallex.errors import CheckpointError, TextError
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model.added_languages import extend_languages
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.text import PHONEMIZERS, PhonemeTokenizer


class SilentVocoder:
    """320 zeros a frame."""

    is_toy = True
    name = "silence"

    def decode(self, codes):
        return torch.zeros(len(codes), codes.shape[1] * 320)


def small_model(**settings) -> VALLE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VALLE(ModelConfig(d_model=32, num_heads=2, num_layers=1, **settings)).eval()


@pytest.mark.parametrize("num_quantizers", [1, 4, 12])
def test_synthesizer_of_another_number_of_codebooks_is_refused_with_the_reason(num_quantizers):
    with pytest.raises(CheckpointError, match=f"speaks {num_quantizers} codebooks; .* need 8"):
        Synthesizer(small_model(num_quantizers=num_quantizers), SilentVocoder(), PhonemeTokenizer())


def test_speak_in_an_added_language_uses_its_row_for_voice_and_text(monkeypatch):
    monkeypatch.setitem(PHONEMIZERS, "ko", lambda text: "annjəŋ")
    model = small_model()
    voice = VoicePrompt(codes=torch.zeros(4, 8, dtype=torch.long), text=torch.tensor([7, 8]), language="ko")
    settings = SpeakSettings(language="ko", seed=1)
    with pytest.raises(TextError, match="language ko is not known to this model; it speaks en, zh, ja"):
        Synthesizer(model, SilentVocoder(), PhonemeTokenizer()).speak("안녕", voice, settings)
    extend_languages(model, {"ko": "ja"})
    synthesizer = Synthesizer(model, SilentVocoder(), PhonemeTokenizer())
    request = synthesizer.request(synthesizer.tokenizer.encode("안녕", "ko"), voice, settings, seed=1)
    assert request.prompt_language == "ko"
    assert set(request.text_language) == {"ko"}
    assert len(synthesizer.speak("안녕", voice, settings).codes) >= 8
