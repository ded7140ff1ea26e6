"""`vallex say --list`, `--continue-from`, several voices, best of several and precisions, by a tiny model."""

import re
import sys

import pytest
import soundfile
import torch

from finetune.cli import main
from vallex.model.checkpoint import save_model
from vallex.model.config import EOS_ID


@pytest.fixture
def vallex(tmp_path, monkeypatch, capsys, make_model):
    """Runs `vallex` in an empty folder with a tiny model that ends by itself; gives exit code and prints."""
    monkeypatch.chdir(tmp_path)
    model = make_model()
    with torch.no_grad():
        model.ar.decoder.norm.bias.fill_(1.0)
        model.ar.predict_layer.weight[EOS_ID].fill_(3.5 / model.config.d_model)
    save_model(model, "tiny.safetensors")
    for seed, name in enumerate(("anna", "ben")):
        noise = torch.rand(24000, generator=torch.Generator().manual_seed(seed)) - 0.5
        soundfile.write(f"{name}.wav", noise.numpy(), 24000)
        (tmp_path / f"{name}.txt").write_text(f"Hello, {name}.", encoding="utf-8")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vallex", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    return call


@pytest.fixture
def say(vallex):
    return lambda *arguments: vallex("say", "--checkpoint", "tiny.safetensors", "--offline-toy", *arguments)


def test_say_list_writes_a_wav_a_line_and_reports_each(say, tmp_path):
    (tmp_path / "list.txt").write_text("Hi there.\n\nGood morning.|Hello, anna.|anna.wav\n", encoding="utf-8")
    code, printed = say("--list", "list.txt", "-o", "spoken", "--voice", "ben.wav", "--seed", "4")
    assert code == 0, printed.err
    assert sorted(path.name for path in (tmp_path / "spoken").iterdir()) == ["0001.wav", "0003.wav"]
    reported = dict(re.findall(r"spoken/(\d+)\.wav: ([\d.]+) s, .*, seed \d+.* read as en\n", printed.out))
    assert {f"{number}.wav" for number in reported} == {"0001.wav", "0003.wav"}
    for number, seconds in reported.items():
        info = soundfile.info(tmp_path / "spoken" / f"{number}.wav")
        assert info.duration == pytest.approx(float(seconds), abs=0.01)
    assert "spoken: 2 texts" in printed.out
    assert printed.out.count("toy weights") == 1


def test_say_with_a_seed_beyond_64_bits_is_refused_in_a_line(say):
    code, printed = say("Hi.", "-o", "hi.wav", "--seed", str(2**64))
    assert code == 2
    assert "less than or equal to 4611686018427387904 (it is '18446744073709551616')" in printed.err


def test_say_list_with_bad_lines_names_them_all_and_writes_nothing(say, tmp_path):
    (tmp_path / "list.txt").write_text("Hi.||nobody.wav\nHi.\n[EN]Hi.\n", encoding="utf-8")
    code, printed = say("--list", "list.txt", "-o", "spoken")
    assert code == 2
    assert printed.err.count("\n") == 1
    assert re.search(
        r"list\.txt: .* 2 of 3 lines .*: line 1: .*nobody\.wav.*; line 3: .* is not closed", printed.err
    )
    assert not (tmp_path / "spoken").exists()


def test_say_list_of_texts_that_stay_empty_writes_the_others_and_fails(say, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("Hi.\nGood morning to you, Anna.\n", encoding="utf-8")
    monkeypatch.setattr(
        "vallex.inference.synthesizer.how_it_ended",
        lambda codes, ended, num_phonemes: "eos" if num_phonemes < 10 else "empty",
    )
    code, printed = say("--list", "list.txt", "-o", "spoken", "--redraws", "0")
    assert code == 1
    assert "list.txt: nothing was said of line 2. Try another --seed" in printed.err
    assert "spoken: 2 texts; line 2 says nothing" in printed.out
    assert [path.name for path in (tmp_path / "spoken").iterdir()] == ["0001.wav"]


def test_say_on_from_a_recording_keeps_its_beginning(say, tmp_path):
    code, printed = say("--continue-from", "anna.wav", "--keep-sec", "0.8", "-o", "out.wav")
    assert code == 0, printed.err
    assert "Its first 0.8 s are those of anna.wav." in printed.out
    assert soundfile.info(tmp_path / "out.wav").duration > 0.8 + 0.1


def test_say_on_says_the_given_text(say, tmp_path):
    spoken = set()
    for arguments in ([], ["Hello, anna."], ["Hello, anna. And good morning."]):
        code, printed = say("--continue-from", "anna.wav", "--keep-sec", "0.8", "-o", "out.wav", *arguments)
        assert code == 0, printed.err
        spoken.add((tmp_path / "out.wav").read_bytes())
    assert len(spoken) == 2


def test_say_in_two_voices_as_one_is_what_the_voice_made_of_both_says(vallex, say, tmp_path):
    code, printed = vallex("voice", "make", "both", "anna.wav", "ben.wav", "--offline-toy")
    assert code == 0, printed.err
    assert re.search(r"both\.npz: 2\.0 s, en, \d+ phonemes", printed.out)
    for out, voices in (("a.wav", ["anna.wav", "ben.wav"]), ("b.wav", ["both"]), ("c.wav", ["anna.wav"])):
        code, printed = say("Hi.", "-o", out, *(part for voice in voices for part in ("--voice", voice)))
        assert code == 0, printed.err
    both, made, one = ((tmp_path / name).read_bytes() for name in ("a.wav", "b.wav", "c.wav"))
    assert both == made != one


def test_say_best_of_several_says_so_and_how_likely_it_is(say):
    code, printed = say("Good morning.", "-o", "out.wav", "--best-of", "4")
    assert code == 0, printed.err
    assert re.search(r"seed [0-3], the best of 4 by -\d+\.\d{3} a frame", printed.out)


def test_say_with_an_accent_says_so_and_speaks_otherwise(say, tmp_path):
    spoken = set()
    for arguments, told in (
        ([], "read as en"),
        (["--accent", "en"], "spoken as en"),
        (["--accent", "ja"], "spoken as ja"),
    ):
        code, printed = say("Good morning.", "-o", "out.wav", *arguments)
        assert code == 0, printed.err
        assert told in printed.out
        spoken.add((tmp_path / "out.wav").read_bytes())
    assert len(spoken) == 2


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_say_in_a_precision_speaks_in_it(say, precision, monkeypatch):
    made = []
    from vallex.inference.synthesizer import Synthesizer

    inner = Synthesizer.__init__
    monkeypatch.setattr(
        Synthesizer,
        "__init__",
        lambda self, model, *rest: made.append(model.precision) or inner(self, model, *rest),
    )
    code, printed = say("Hi.", "-o", "out.wav", "--precision", precision)
    assert code == 0, printed.err
    assert made == [precision]


def test_say_with_flags_of_sampling_hands_them_on(say, monkeypatch):
    asked = []
    from vallex.inference import synthesizer

    inner = synthesizer.decode_first
    monkeypatch.setattr(
        synthesizer, "decode_first", lambda model, requests: asked.extend(requests) or inner(model, requests)
    )
    flags = {
        "repetition_aware": 0.1,
        "repetition_penalty": 1.2,
        "top_k": 40,
        "top_p": 0.8,
        "temperature": 0.9,
    }
    options = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    say("Hi.", "-o", "out.wav", *options)  # drawn so, the tiny model may have nothing to say
    assert {name: getattr(asked[0], name) for name in flags} == flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hi.", "--list", "list.txt", "-o", "spoken"], "--list list.txt and TEXT: a list has its own texts"),
        (["--list", "a", "--continue-from", "b", "-o", "spoken"], "--list a and --continue-from: a list"),
        (["--list", "list.txt", "-o", "out.wav"], "out.wav: with --list, -o is a folder"),
        (
            ["--continue-from", "anna.wav", "--voice", "ben.wav", "-o", "o.wav"],
            "--voice ben.wav: the recording",
        ),
        (["--continue-from", "anna.wav", "--keep-sec", "2", "-o", "o.wav"], "keep 0.5 to 1.0 s of it"),
        (["Hi.", "--keep-sec", "2", "-o", "o.wav"], "--keep-sec is 2 and there is no --continue-from"),
        (
            ["Hi.", "--precision", "int4", "-o", "o.wav"],
            "precision 'int4' is not known; it must be one of float32",
        ),
        (["Hi.", "--repetition-aware", "1", "-o", "o.wav"], "repetition_aware is 1.0; it must be at least 0"),
        (
            ["Hi.", "--repetition-penalty", "0", "-o", "o.wav"],
            "repetition_penalty is 0.0; it must be at least 1",
        ),
        (
            ["Hi.", "--accent", "xx", "-o", "o.wav"],
            "language xx is not known to this model; it speaks en, zh, ja",
        ),
        (["Hi.", "--best-of", "0", "-o", "o.wav"], "Invalid value for '--best-of'"),
        (
            ["Hi.", "--voice", "anna.wav", "--voice", "ben.wav", "--text", "Hello.", "-o", "o.wav"],
            "--text is what one recording says, and there are 2",
        ),
    ],
)
def test_say_of_what_cannot_be_is_one_line(say, tmp_path, arguments, message):
    code, printed = say(*arguments)
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "o.wav").exists()
