"""What training collates and predicts is what speaking reads and predicts: logits of both paths, by mode."""

import pytest
import torch

from finetune.data.dataset import Utterance, collate_utterances
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model import decoding
from vallex.model.config import ModelConfig
from vallex.model.decoding import decode_first, fill_codebooks
from vallex.model.network import VALLE
from vallex.model.prefix import NarPrefix
from vallex.text import PhonemeTokenizer, TextCollator

MARKS = [(False, False), (True, False), (False, True), (True, True)]


class Silence:
    is_toy = True
    name = "silence"

    def decode(self, codes):
        return torch.zeros(len(codes), 320 * codes.shape[1])


@pytest.fixture(scope="module")
def tokenizer():
    return PhonemeTokenizer()


@pytest.fixture(scope="module")
def encoding(tokenizer):
    encoding = tokenizer.encode("[ZH]你好[ZH][EN]Hi.[EN]")
    assert encoding.languages[0] == "zh" and encoding.languages[-1] == "en"
    return encoding


@pytest.fixture
def codes():
    return torch.randint(0, 1024, (23, 8), generator=torch.Generator().manual_seed(0))


def build(tokenizer, mode, bos, eos):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"d_model": 32, "num_heads": 2, "num_layers": 2, "num_text_tokens": 70}
        model = VALLE(ModelConfig(**settings, prefix_mode=mode, text_bos=bos, text_eos=eos)).eval()
        for half in (model.ar, model.nar):
            # loud enough that a mark or a language in the wrong place is seen
            torch.nn.init.normal_(half.text_embedding.weight)
            torch.nn.init.normal_(half.language_embedding.weight)
    return Synthesizer(model, Silence(), tokenizer)


def voice_of(codes, text):
    return VoicePrompt(codes=codes, text=torch.tensor(text), language="ja")


def spoken_logits(synthesizer, request, codes, monkeypatch):
    """What the NAR predicts at each stage while it speaks, given the true codes: 7 of [T, 1024]."""
    stages = []
    synthesizer.model.nar.register_forward_hook(lambda _module, _args, out: stages.append(out[0]))
    # `sample` is asked once a stage; what it gives is what the next stage sees
    true_codes = iter(codes[:, stage] for stage in range(1, 8))
    monkeypatch.setattr(decoding, "sample", lambda *_args, **_settings: next(true_codes))
    [filled] = fill_codebooks(synthesizer.model, [request], [codes[:, 0]])
    assert torch.equal(filled, codes)
    return stages


def trained_logits(model, utterance, prefix, num_frames):
    config = model.config
    collator = TextCollator(bos=config.text_bos, eos=config.text_eos, language_codes=config.languages)
    batch = collate_utterances([utterance], collator)
    with torch.no_grad():
        outs = [model(batch, stage, prefix=prefix) for stage in range(1, 8)]
    return [out.logits[0, -num_frames:] for out in outs]


@pytest.mark.parametrize(("bos", "eos"), MARKS)
@pytest.mark.parametrize("mode", [0, 1, 2, 4])
@pytest.mark.parametrize("with_voice", [True, False])
def test_nar_when_speaking_then_predicts_what_it_predicts_in_training(
    tokenizer, encoding, codes, monkeypatch, bos, eos, mode, with_voice
):
    synthesizer = build(tokenizer, mode, bos, eos)
    start, length = 4, 6
    # mode 2 takes its prompt out of the utterance itself, the others from elsewhere
    prompt = codes[start : start + length] if mode == 2 else codes.flip(0)[:length]
    voice = voice_of(prompt, [7, 8, 9, 10]) if with_voice else None
    request = synthesizer.request(encoding, voice, SpeakSettings(), seed=0)
    spoken = spoken_logits(synthesizer, request, codes, monkeypatch)

    ids, languages, whole, separate = encoding.ids, encoding.languages, codes, None
    prefix = NarPrefix(mode=mode, length=0, segment_start=start)
    if with_voice and mode in (0, 1):
        # the voice is the beginning of the utterance
        ids, languages = [7, 8, 9, 10, *ids], ["ja"] * 4 + languages
        whole = torch.cat([prompt, codes])
    if with_voice and mode == 4:
        separate = prompt
    if with_voice:
        prefix = NarPrefix(mode=mode, length=length, segment_start=start)
    utterance = Utterance(id="one", phoneme_ids=ids, languages=languages, codes=whole, prompt_codes=separate)
    trained = trained_logits(synthesizer.model, utterance, prefix, len(codes))
    for stage in range(7):
        torch.testing.assert_close(spoken[stage], trained[stage], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("bos", "eos"), MARKS)
@pytest.mark.parametrize("with_voice", [True, False])
def test_ar_when_speaking_then_predicts_what_it_predicts_in_training(
    tokenizer, encoding, codes, bos, eos, with_voice
):
    synthesizer = build(tokenizer, 1, bos, eos)
    voice = voice_of(codes[:6], [7, 8, 9, 10]) if with_voice else None
    request = synthesizer.request(encoding, voice, SpeakSettings(top_k=1), seed=0)
    steps = []
    hook = synthesizer.model.ar.predict_layer.register_forward_hook(
        lambda _module, _args, out: steps.append(out)
    )
    [first] = decode_first(synthesizer.model, [request])
    hook.remove()
    spoken = torch.zeros(len(first.codes), 8, dtype=torch.long)
    spoken[:, 0] = first.codes
    ids, languages, whole = encoding.ids, encoding.languages, spoken
    if with_voice:
        ids, languages = [7, 8, 9, 10, *ids], ["ja"] * 4 + languages
        whole = torch.cat([codes[:6], spoken])
    utterance = Utterance(id="one", phoneme_ids=ids, languages=languages, codes=whole)
    collator = TextCollator(bos=bos, eos=eos)
    with torch.no_grad():
        trained = synthesizer.model(collate_utterances([utterance], collator), 0).logits[0]
    torch.testing.assert_close(torch.cat(steps), trained[-len(steps) :], atol=1e-4, rtol=1e-4)
