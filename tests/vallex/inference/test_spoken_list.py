"""Lists of texts: how lines are read, that all faults are told at once, and that groups change nothing."""

import pytest
import soundfile
import torch

from vallex.codec import load_codec
from vallex.errors import ListError
from vallex.inference.prompts import VoicePrompt, save_prompt
from vallex.inference.spoken_list import ListLine, ListVoices, parse_line, prepare_list, read_list, speak_list
from vallex.inference.synthesizer import SpeakSettings, Synthesizer
from vallex.model.config import EOS_ID, ModelConfig
from vallex.model.network import VALLE
from vallex.text import PhonemeTokenizer

SETTINGS = SpeakSettings(seed=3, best_of=2)


class Vocoder:
    is_toy = True
    name = "count"

    def decode(self, codes):
        return codes[..., 0].repeat_interleave(320, dim=1).float()


@pytest.fixture(scope="module")
def synthesizer():
    """Ends by itself after some tens of frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VALLE(ModelConfig(d_model=32, num_heads=2, num_layers=1)).eval()
        torch.nn.init.normal_(model.ar.audio_embedding.weight)
        with torch.no_grad():
            model.ar.decoder.norm.bias.fill_(1.0)
            model.ar.predict_layer.weight[EOS_ID].fill_(4.0 / 32)
    return Synthesizer(model, Vocoder(), PhonemeTokenizer())


@pytest.fixture(scope="module")
def codec():
    return load_codec(toy=True)


@pytest.fixture
def folder(tmp_path):
    """A folder with a recording, its text and a saved voice."""
    noise = torch.rand(24000, generator=torch.Generator().manual_seed(0)) - 0.5
    soundfile.write(tmp_path / "anna.wav", noise.numpy(), 24000)
    (tmp_path / "anna.txt").write_text("Hello there.", encoding="utf-8")
    soundfile.write(tmp_path / "mute.wav", noise.numpy(), 24000)
    codes = torch.randint(0, 1024, (80, 8), generator=torch.Generator().manual_seed(0))
    save_prompt(tmp_path / "ben.npz", VoicePrompt(codes=codes, text=torch.tensor([7, 8, 9]), language="ja"))
    return tmp_path


@pytest.fixture
def prepare(folder, synthesizer, codec):
    def prepare(text, default=None):
        path = folder / "list.txt"
        path.write_text(text, encoding="utf-8")
        voices = ListVoices(default=default, folder=folder, codec=codec, synthesizer=synthesizer)
        return prepare_list(path, voices, SETTINGS, "fixed"), voices

    return prepare


def test_read_list_takes_bars_or_tabs_and_leaves_out_blank_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffGood morning.\r\n\r\n Hi. | Hello. |anna.wav\nEither|or\t\tben.npz\n".encode())
    assert [parse_line(number, row) for number, row in read_list(path)] == [
        ListLine(number=1, text="Good morning."),
        ListLine(number=3, text="Hi.", prompt_text="Hello.", prompt_audio="anna.wav"),
        ListLine(number=4, text="Either|or", prompt_audio="ben.npz"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no list can be read there"),
        (b"\n \n", "it has no line with a text"),
        (b"Gr\xfcezi.\n", r"not UTF-8 text \(.*\); save it as UTF-8"),
    ],
)
def test_read_list_of_what_is_none_says_why(tmp_path, content, message):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ListError, match=message):
        read_list(path)


def test_prepare_list_finds_each_voice_beside_the_list_and_once(prepare, monkeypatch):
    default = VoicePrompt(codes=torch.zeros(9, 8, dtype=torch.long), text=torch.tensor([7]), language="zh")
    texts, voices = prepare(
        "One.||anna.wav\nTwo.|Hello there.|anna.wav\nThree.||ben.npz\nFour.\n1||anna.wav", default
    )
    assert [text.number for text in texts] == [1, 2, 3, 4, 5]
    assert texts[0].voice is texts[4].voice
    assert torch.equal(texts[0].voice.codes, texts[1].voice.codes)
    assert texts[2].voice.language == "ja"
    assert texts[3].voice is default
    assert len(voices.found) == 3


def test_prepare_list_tells_every_fault_of_every_line_at_once(prepare):
    expected = (
        r"list\.txt: nothing was spoken, because 7 of 8 lines cannot be: "
        r"line 1: nothing to say in '…'.*; voice 'nobody\.wav': no such file.*; "
        r"line 3: it has a prompt text and no prompt audio; "
        r"line 4: .*mute\.wav: what is said in it is not known.*"
        r"line 5: .*ben\.npz: a saved voice knows what it says; .*"
        r"line 6: \[EN\].* is not closed.*; "
        r"line 7: it has no text in its first column; "
        r"line 8: it has 4 columns; at most 3 are allowed: text\|prompt text\|prompt audio"
    )
    with pytest.raises(ListError, match=expected):
        prepare(
            "…||nobody.wav\nHi.\nHi.|Hello.\nHi.||mute.wav\nHi.|Hello.|ben.npz\n[EN]Hi.\n"
            "|Hello.|anna.wav\na|b|c|d\n"
        )


def test_prepare_list_with_a_text_in_the_column_of_the_recording_names_the_line(prepare):
    with pytest.raises(ListError, match=r"line 2: .*(File name too long|no such file)"):
        prepare(f"Hi.\nHi.||{'said ' * 60}\n")


def test_prepare_list_in_a_language_that_the_model_does_not_speak_names_it(prepare, monkeypatch):
    from vallex.text import PHONEMIZERS

    monkeypatch.setitem(PHONEMIZERS, "ko", lambda text: "k a")
    with pytest.raises(ListError, match="line 2: language ko is not known to this model"):
        prepare("Hi.\n[KO]x[KO]\n")


def test_prepare_list_with_many_faults_shows_twenty_and_counts_the_rest(prepare):
    with pytest.raises(
        ListError, match=r"because 23 of 23 lines cannot be: line 1: .*line 20: [^;]*; and 3 more$"
    ):
        prepare("Hi.|Hello.\n" * 23)


def test_speak_list_gives_what_each_text_gives_alone(prepare, synthesizer):
    texts, _ = prepare(
        "Good morning to you all.||anna.wav\nHi.\n[ZH]你好[ZH]||ben.npz\nNo, thank you.||anna.wav\n"
    )
    spoken = {text.number: speech for text, speech in speak_list(synthesizer, texts, SETTINGS, "fixed")}
    assert sorted(spoken) == [1, 2, 3, 4]
    for text in texts:
        alone = synthesizer.speak(text.text, text.voice, SETTINGS)
        assert torch.equal(alone.codes, spoken[text.number].codes)
        assert torch.equal(alone.wav, spoken[text.number].wav)


def test_speak_list_gives_a_group_before_the_next_is_decoded(prepare, synthesizer, monkeypatch):
    monkeypatch.setattr("vallex.inference.spoken_list.BATCH_ROWS", 2)
    asked = []
    inner = synthesizer.speak_many
    monkeypatch.setattr(
        synthesizer, "speak_many", lambda texts, settings: asked.append(len(texts)) or inner(texts, settings)
    )
    texts, _ = prepare("Hi.\nHi there, Anna.\nNo.\n")
    spoken = speak_list(synthesizer, texts, SETTINGS, "fixed")
    first = [next(spoken)[0].number, next(spoken)[0].number]
    assert (sorted(first), asked) == ([1, 3], [2])
    assert [text.number for text, _ in spoken] == [2]


def test_speak_list_of_a_text_too_long_speaks_it_in_chunks(prepare, synthesizer):
    sentence = "The quick brown fox jumps over the lazy dog near the river. "
    texts, _ = prepare(f"{sentence * 6}\nHi.\n")
    assert [text.num_chunks > 1 for text in texts] == [True, False]
    spoken = [text.number for text, _ in speak_list(synthesizer, texts, SETTINGS, "fixed")]
    assert spoken == [2, 1]
