"""Making voice prompts from recordings, joining them, and finding the voice that a user names."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec
from vallex.errors import PromptError
from vallex.inference.asr import ASR_RATE_HZ, Heard, find_recognizer, load_recognizer, missing_recognizer
from vallex.inference.prompts import VoicePrompt, find_prompt, load_prompt
from vallex.sources import CHECKPOINTS_DIR
from vallex.text import PhonemeTokenizer
from vallex.text.symbols import SPACE_SYMBOL, released_vocabulary

MIN_PROMPT_SEC = 0.5
MAX_PROMPT_SEC = 15.0
ADVISED_PROMPT_SEC = 3.0
TRANSCRIPT_SUFFIXES = (".normalized.txt", ".original.txt", ".txt")


def voice_from_recording(
    path: Path, transcript: str, codec: EncodecCodec, tokenizer: PhonemeTokenizer, language: str = "auto"
) -> VoicePrompt:
    """Makes a voice prompt of a recording and what is said in it.

    errors: AudioError, TextError; PromptError where it is shorter than 0.5 s or longer than 15 s, or mixes
        languages (a prompt has one)
    """
    wav = load_audio(path)
    _check_length(path, len(wav) / codec.sample_rate_hz)
    encoding = tokenizer.encode(transcript, language=language)
    languages = sorted(set(encoding.languages))
    if len(languages) > 1:
        raise PromptError(
            f"{path}: its transcript is in {' and '.join(languages)}; a voice prompt has one language"
        )
    with torch.inference_mode():
        codes = codec.encode(wav)[0].cpu().clone()
    return VoicePrompt(
        codes=codes,
        text=torch.tensor(encoding.ids),
        language=languages[0],
        toy=codec.is_toy,
        transcript=transcript,
    )


def join_voices(voices: Sequence[VoicePrompt], names: Sequence[str]) -> VoicePrompt:
    """Several prompts of one speaker as one: their codes one after another, their texts as one text.

    names: what the user calls them, for the error
    errors: PromptError where they are of several languages, or together longer than 15 s
    """
    if len(voices) == 1:
        return voices[0]
    languages = sorted({voice.language for voice in voices})
    seconds = sum(voice.seconds for voice in voices)
    faults = []
    if len(languages) > 1:
        faults.append(f"they are in {' and '.join(languages)}; a voice prompt has one language")
    if seconds > MAX_PROMPT_SEC:
        faults.append(
            f"together they last {seconds:.1f} s; a voice prompt is at most {MAX_PROMPT_SEC:.0f} s, best "
            f"{ADVISED_PROMPT_SEC:.0f} s or more: leave some out"
        )
    if faults:
        raise PromptError(f"{', '.join(names)}: {'; '.join(faults)}")
    space = torch.tensor([released_vocabulary()[SPACE_SYMBOL]])
    texts = [part for voice in voices for part in (space, voice.text)][1:]
    transcripts = [voice.transcript for voice in voices]
    return VoicePrompt(
        codes=torch.cat([voice.codes for voice in voices]),
        text=torch.cat(texts),
        language=languages[0],
        toy=any(voice.toy for voice in voices),
        transcript=" ".join(transcripts) if all(transcripts) else "",
    )


def beginning_of(path: Path, keep_sec: float, codec: EncodecCodec) -> Tensor:
    """The codes of the first `keep_sec` seconds of a recording: [P, 8] int64.

    errors: AudioError; PromptError where it is shorter, and below 0.5 s or above 15 s
    """
    wav = load_audio(path)
    seconds = len(wav) / codec.sample_rate_hz
    longest_sec = min(seconds, MAX_PROMPT_SEC)
    if not MIN_PROMPT_SEC <= keep_sec <= longest_sec:
        raise PromptError(
            f"{path}: its first {keep_sec:g} s are to be continued, and it lasts {seconds:.1f} s; keep "
            f"{MIN_PROMPT_SEC} to {longest_sec:.1f} s of it (--keep-sec)"
        )
    with torch.inference_mode():
        return codec.encode(wav[: round(keep_sec * codec.sample_rate_hz)])[0].cpu().clone()


def _check_length(path: Path, seconds: float) -> None:
    if not MIN_PROMPT_SEC <= seconds <= MAX_PROMPT_SEC:
        raise PromptError(
            f"{path}: lasts {seconds:.1f} s; a voice prompt is {MIN_PROMPT_SEC} to {MAX_PROMPT_SEC:.0f} s, "
            f"best {ADVISED_PROMPT_SEC:.0f} s or more. Cut it to a whole sentence, with its words in --text"
        )


def find_transcript(recording: Path, given: str | None) -> str:
    """What is said in a recording: as given, else from a text file of its name beside it.

    errors: PromptError where there is neither, or no recording
    """
    known = known_transcript(recording, given)
    if known is None:
        raise PromptError(_unknown_transcript(recording))
    return known


def hear_transcript(
    recording: Path, language: str = "auto", checkpoints_dir: Path = CHECKPOINTS_DIR
) -> Heard:
    """What a recognizer hears in a recording for a voice prompt.

    errors: AudioError; PromptError where it is too long or too short, where no recognizer is there, or it
        hears nothing
    """
    wav = load_audio(recording, ASR_RATE_HZ)
    _check_length(recording, len(wav) / ASR_RATE_HZ)
    if find_recognizer("auto", language, checkpoints_dir) is None:
        reason = missing_recognizer("auto", language, checkpoints_dir)
        raise PromptError(f"{_unknown_transcript(recording)} ({reason})")
    [heard] = load_recognizer("auto", language, checkpoints_dir).hear([wav], language)
    if not heard.text:
        raise PromptError(f"{recording}: {heard.source} hears no word in it; say what is said with --text")
    return heard


def known_transcript(recording: Path, given: str | None) -> str | None:
    """What is said in a recording: as given, else from a text file beside it; None where there is neither.

    errors: PromptError where there is no recording
    """
    if not recording.exists():
        raise PromptError(f"{recording}: there is no such recording")
    if given is not None:
        return given
    beside = [recording.with_name(recording.stem + suffix) for suffix in TRANSCRIPT_SUFFIXES]
    for path in beside:
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise PromptError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    return None


def _unknown_transcript(recording: Path) -> str:
    return (
        f"{recording}: what is said in it is not known: give it with --text, or put it into "
        f"{recording.stem}{TRANSCRIPT_SUFFIXES[-1]} beside the recording"
    )


def check_transcript(voices: Sequence[str], transcript: str | None) -> None:
    """Refuses one transcript for several voices: whose words are whose would be a guess."""
    if transcript is not None and len(voices) > 1:
        raise PromptError(
            f"--text is what one recording says, and there are {len(voices)}: put the words of each into a "
            f"{TRANSCRIPT_SUFFIXES[-1]} file of its name beside it"
        )


def obtain_voices(
    voices: Sequence[str],
    transcript: str | None,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    prompts_dir: Path = Path("prompts"),
) -> VoicePrompt:
    """The voices that a user names, joined to one.

    errors: as obtain_voice and join_voices; PromptError for a transcript of several voices
    """
    check_transcript(voices, transcript)
    found = [obtain_voice(voice, transcript, codec, tokenizer, prompts_dir) for voice in voices]
    return join_voices(found, voices)


def obtain_voice(
    voice: str,
    transcript: str | None,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    prompts_dir: Path = Path("prompts"),
) -> VoicePrompt:
    """The voice that a user names: a saved one, an `.npz` file, or a recording with its transcript.

    errors: PromptError, AudioError, TextError; a prompt of toy codes is refused by a real codec, and a
        transcript of what is no recording
    """
    path = Path(voice)
    if path.is_file() and path.suffix != ".npz":
        return voice_from_recording(path, find_transcript(path, transcript), codec, tokenizer)
    found = find_prompt(voice, prompts_dir)
    if transcript is not None:
        raise PromptError(
            f"{found}: a saved voice knows what it says; leave its text out, or name a recording"
        )
    prompt = load_prompt(found)
    if prompt.toy and not codec.is_toy:
        raise PromptError(
            f"{found}: made with toy weights, its codes are noise to the real model. Make it again: vallex "
            f"voice make {found.stem} WAV --text TRANSCRIPT"
        )
    return prompt
