"""Makes the sample beside this file, and the speech to which the toy codec is fitted.

    python finetune/sample/make_sample.py        (needs the command flite; Debian: apt-get install flite)

Two voices of flite say different sentences, so that no transcript is heard twice; the last of each voice
is the validation part. flite draws nothing at random: the same version makes the same files.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile
import torch

import vallex.codec.toy
from vallex.codec.audio import SAMPLE_RATE_HZ, load_audio, save_audio

HERE = Path(__file__).resolve().parent
ROOT = HERE / "LibriTTS-sample"
CHAPTER = "1"
NUM_VALIDATION = 2
PAUSE_SEC = 0.06
SILENCE_PEAK = 0.01
# a little faster than flite speaks: more sentences in 2 MB
DURATION_STRETCH = 0.86
PEAK = 0.7
TOY_SPEECH_SEC = 7.2
SENTENCES = {
    # flite voice: (speaker id, what it says)
    "slt": (
        "9001",
        [
            "The ferry leaves the old harbour at seven.",
            "Bring a thick coat, the wind is cold.",
            "We should choose a larger yellow house.",
            "My cousin plays the violin every Thursday.",
            "She measured the blue string twice.",
            "Fresh bread and cheese are on the table.",
            "A quiet voice can fill a large room.",
            "The judge enjoyed a cup of ginger tea.",
            "Please put the red book back on the shelf.",
        ],
    ),
    "rms": (
        "9002",
        [
            "Nine boys were walking along the beach.",
            "The garage door opens with a loud noise.",
            "Could you show me the path to the village?",
            "He bought four pounds of fresh cherries.",
            "Clouds gathered over the southern hills.",
            "They thanked the nurse for her good advice.",
            "Our new neighbour keeps bees.",
            "Put the spoon beside the white dish.",
            "The young engineer fixed the broken clock.",
        ],
    ),
}


def main() -> None:
    """Writes the sample and the toy's speech anew."""
    if shutil.which("flite") is None:
        raise SystemExit("flite is not installed. On Debian: apt-get install flite")
    shutil.rmtree(ROOT, ignore_errors=True)
    clips = {
        voice: [speak(voice, sentence) for sentence in sentences]
        for voice, (_, sentences) in SENTENCES.items()
    }
    for voice, (speaker, sentences) in SENTENCES.items():
        first_validation = len(sentences) - NUM_VALIDATION
        write_part("train-clean", speaker, sentences, clips[voice], range(first_validation))
        write_part("dev-clean", speaker, sentences, clips[voice], range(first_validation, len(sentences)))
    write_toy_speech([clip for pair in zip(*clips.values(), strict=True) for clip in pair])
    seconds = sum(len(clip) for voice in clips.values() for clip in voice) / SAMPLE_RATE_HZ
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    print(f"{sum(map(len, clips.values()))} clips, {seconds:.1f} s, {size / 1e6:.2f} MB in {HERE.name}/")


def speak(voice: str, sentence: str) -> torch.Tensor:
    """One sentence, [N] float32 at 24 kHz, with little silence at its ends and the same peak for all."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        stretch = f"duration_stretch={DURATION_STRETCH}"
        command = ["flite", "-voice", voice, "--setf", stretch, "-t", sentence, "-o", str(file)]
        subprocess.run(command, check=True)
        wav = load_audio(file)
    loud = (wav.abs() > SILENCE_PEAK).nonzero()
    pause = int(PAUSE_SEC * SAMPLE_RATE_HZ)
    wav = wav[max(0, int(loud[0]) - pause) : int(loud[-1]) + pause]
    return wav * (PEAK / wav.abs().max())


def write_part(
    part: str, speaker: str, sentences: list[str], clips: list[torch.Tensor], which: range
) -> None:
    """The clips of one speaker as LibriTTS has them: a wav and two texts each, and a table of all."""
    folder = ROOT / part / speaker / CHAPTER
    folder.mkdir(parents=True)
    rows = []
    for number in which:
        utterance = f"{speaker}_{CHAPTER}_{number:06d}_000000"
        save_audio(folder / f"{utterance}.wav", clips[number])
        for kind in ("original", "normalized"):
            (folder / f"{utterance}.{kind}.txt").write_text(sentences[number], encoding="utf-8")
        rows.append(f"{utterance}\t{sentences[number]}\t{sentences[number]}\n")
    (folder / f"{speaker}_{CHAPTER}.trans.tsv").write_text("".join(rows), encoding="utf-8")


def write_toy_speech(clips: list[torch.Tensor]) -> None:
    """The first seconds of the sample, the voices in turn: flac is exact and half the size of wav."""
    wav = torch.cat(clips)[: int(TOY_SPEECH_SEC * SAMPLE_RATE_HZ)]
    soundfile.write(vallex.codec.toy.SPEECH, wav.numpy(), SAMPLE_RATE_HZ, "PCM_16")


if __name__ == "__main__":
    main()
