"""The README's section on a language of your own: its reader and its commands, as they stand there."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import finetune
from finetune.cli import main
from vallex.inference.prompts import load_prompt
from vallex.model.checkpoint import load_model
from vallex.text import PHONEMIZERS, PhonemeTokenizer

SAMPLE = Path(finetune.__file__).parent / "sample"
README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def section() -> str:
    return re.search(r"## A language of your own\n(.*?)\n## ", README.read_text(encoding="utf-8"), re.S)[1]


@pytest.fixture
def here(section, tmp_path, monkeypatch) -> Path:
    """A folder with korean.py as in the README and a few recordings; afterwards all is forgotten."""
    code = re.search("```python\n(.*?)```", section, re.S)[1]
    (tmp_path / "korean.py").write_text(code, encoding="utf-8")
    parts = {"train": 4, "dev": 2}
    recordings = iter(sorted(SAMPLE.rglob("*.flac")) or sorted(SAMPLE.rglob("*.wav")))
    for part, count in parts.items():
        folder = tmp_path / "recordings-ko" / part / "anna" / "1"
        folder.mkdir(parents=True)
        for number in range(count):
            source = next(recordings)
            shutil.copy(source, folder / f"{part}_{number}{source.suffix}")
            (folder / f"{part}_{number}.normalized.txt").write_text("안녕하세요 여러분", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(PHONEMIZERS)
    yield tmp_path
    PHONEMIZERS.clear()
    PHONEMIZERS.update(before)
    sys.modules.pop("korean", None)


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vallex", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_readme_commands_when_run_on_the_toy_then_prepare_teach_and_speak(here, section, monkeypatch, capsys):
    commands = [shlex.split(line) for line in re.findall("^vallex (.*)$", section, re.M)]
    assert [command[0] for command in commands] == ["prepare", "finetune", "say"]
    extra = {
        "prepare": [],
        "finetune": ["--set", "max_steps=1", "--set", "accumulate=1", "--set", "max_batch_sec=4"],
        "say": ["--top-k", "50", "--runs", "runs"],
    }
    for verb, *arguments in commands:
        assert run(monkeypatch, verb, *arguments, *extra[verb], "--offline-toy") == 0, capsys.readouterr().err
    model = load_model(here / "runs" / "korean")
    assert model.config.languages == ("en", "zh", "ja", "ko")
    assert (here / "hi.wav").stat().st_size > 2 * 24000 * 0.1

    wav = here / "recordings-ko" / "dev" / "anna" / "1" / "dev_0.wav"
    wav = wav if wav.exists() else wav.with_suffix(".flac")
    asked = ("voice", "make", "mina", str(wav), "--text", "안녕하세요", "--language", "ko")
    assert run(monkeypatch, *asked, "--phonemizer", "ko=korean:to_phonemes", "--offline-toy") == 0
    assert load_prompt(here / "prompts" / "mina.npz").language == "ko"


def test_readme_reader_when_it_reads_hangul_then_knows_all_its_symbols(here, monkeypatch):
    sys.path.insert(0, str(here))
    from korean import to_phonemes

    monkeypatch.setitem(PHONEMIZERS, "ko", to_phonemes)
    every_syllable = "".join(chr(place) for place in range(ord("가"), ord("힣") + 1))
    encoding = PhonemeTokenizer().encode(every_syllable, language="ko")
    assert encoding.unknown == []
    assert PhonemeTokenizer().encode("[KO]안녕하세요, 꽃![KO]").phonemes == "annjəŋhasejo, k⁼ot!"


def test_prepare_when_no_phonemizer_is_given_then_lists_the_languages(here, monkeypatch, capsys):
    assert run(monkeypatch, "prepare", "recordings-ko", "out", "--language", "ko", "--offline-toy") == 2
    assert "language 'ko' is not one of auto, en, zh, ja" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [("prepare", "recordings-ko", "out"), ("say", "[KO]안[KO]", "-o", "x.wav")])
@pytest.mark.parametrize(
    ("option", "fault"),
    [
        (("--phonemizer", "ko=korean"), "phonemizer 'ko=korean': write it as CODE=MODULE:FUNCTION"),
        (("--phonemizer", "ko=korean:read"), "module 'korean' has no attribute 'read'"),
        (("--unknown-words", "drop"), "unknown_words 'drop' is not one of keep, spell"),
    ],
)
def test_option_when_wrong_then_one_line_says_so_before_any_work(
    here, monkeypatch, capsys, verb, option, fault
):
    assert run(monkeypatch, *verb, *option, "--offline-toy") == 2
    message = capsys.readouterr().err
    assert fault in message and message.count("\n") == 1
    assert not (here / "out").exists() and not (here / "x.wav").exists()


def test_prepare_when_unknown_words_are_spelled_then_the_set_records_it(here, monkeypatch):
    for path in (here / "recordings-ko").rglob("*.txt"):
        path.write_text("Hello qzxv.", encoding="utf-8")
    for way in ("keep", "spell"):
        assert run(monkeypatch, "prepare", "recordings-ko", way, "--unknown-words", way, "--offline-toy") == 0
    read = {way: json.loads((here / way / "prepared.json").read_text()) for way in ("keep", "spell")}
    assert {way: info["settings"]["unknown_words"] for way, info in read.items()} == {
        "keep": "keep",
        "spell": "spell",
    }
    assert read["keep"]["fingerprint"] != read["spell"]["fingerprint"]
