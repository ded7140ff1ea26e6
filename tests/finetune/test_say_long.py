"""`vallex say` of a text that does not fit at once, by a tiny model that says noise."""

import re
import sys

import pytest
import soundfile

from finetune.cli import main
from vallex.model.checkpoint import save_model

LONG = "The quick brown fox jumps over the lazy dog near the river. " * 6


@pytest.fixture
def say(tmp_path, monkeypatch, capsys, make_model):
    """Runs `vallex say` with a tiny model in an empty folder; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    save_model(make_model(), "tiny.safetensors")
    # what it says is noise, so be brief
    monkeypatch.setattr("vallex.inference.guards.BUDGET_FRAMES_PER_PHONEME", 1)
    monkeypatch.setattr("vallex.inference.guards.BUDGET_EXTRA_FRAMES", 0)

    def call(*arguments):
        fixed = ["say", "-o", "out.wav", "--checkpoint", "tiny.safetensors", "--offline-toy"]
        monkeypatch.setattr(sys, "argv", ["vallex", *fixed, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return call


@pytest.mark.parametrize("options", [(), ("--long", "fixed"), ("--long", "sliding")])
def test_say_when_text_is_long_then_speaks_it_in_chunks_into_one_wav(say, tmp_path, options):
    code, printed = say(LONG, *options)
    assert code == 0, printed.err
    mode = options[-1] if options else "fixed"
    [count] = re.findall(rf"Spoken in (\d+) chunks \({mode}\)", printed.out)
    assert int(count) > 1
    seconds = float(re.search(r"out\.wav: ([\d.]+) s", printed.out)[1])
    assert soundfile.info(tmp_path / "out.wav").duration == pytest.approx(seconds, abs=0.01)
    assert seconds > 1


def test_say_when_text_is_short_then_speaks_of_no_chunks(say):
    code, printed = say("Hello, how are you today?", "--long", "sliding")
    assert code == 0, printed.err
    assert "chunks" not in printed.out


def test_say_when_mode_is_unknown_then_refuses_in_one_line(say, tmp_path):
    code, printed = say("Hello.", "--long", "both")
    assert code == 2
    assert "long is 'both'; it must be one of fixed, sliding" in printed.err
    assert not (tmp_path / "out.wav").exists()


def test_say_when_words_are_unknown_then_tells_them_and_reads_them_as_asked(say, tmp_path):
    spoken = set()
    for way in ("keep", "spell"):
        code, printed = say("Hello qzxv.", "--unknown-words", way)
        assert code == 0, printed.err
        assert "Words that no dictionary has" in printed.out and "qzxv" in printed.out
        spoken.add((tmp_path / "out.wav").read_bytes())
    assert len(spoken) == 2


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("東京です、元気ですか。", "ja"),
        ("OK, that is fine.", "en"),
        ("你好，今天天气很好。", "zh"),
        ("[EN]Yes, it is.[EN][ZH]是的，没错。[ZH]", "en and zh"),
    ],
)
def test_say_when_it_decides_on_a_language_then_tells_it(say, text, languages):
    code, printed = say(text)
    assert code == 0, printed.err
    assert f"read as {languages}\n" in printed.out
