"""Making voice prompts from recordings, and finding the voice that a user names."""

from pathlib import Path

import torch

from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec
from vallex.errors import PromptError
from vallex.inference.prompts import VoicePrompt, find_prompt, load_prompt
from vallex.text import PhonemeTokenizer

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
    seconds = len(wav) / codec.sample_rate_hz
    if not MIN_PROMPT_SEC <= seconds <= MAX_PROMPT_SEC:
        raise PromptError(
            f"{path}: lasts {seconds:.1f} s; a voice prompt is {MIN_PROMPT_SEC} to {MAX_PROMPT_SEC:.0f} s, "
            f"best {ADVISED_PROMPT_SEC:.0f} s or more. Cut it to a whole sentence, with its words in --text"
        )
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


def find_transcript(recording: Path, given: str | None) -> str:
    """What is said in a recording: as given, else from a text file of its name beside it.

    errors: PromptError where there is neither, or no recording
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
    raise PromptError(
        f"{recording}: what is said in it is not known: give it with --text, or put it into "
        f"{beside[-1].name} beside the recording"
    )


def obtain_voice(
    voice: str,
    transcript: str | None,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    prompts_dir: Path = Path("prompts"),
) -> VoicePrompt:
    """The voice that a user names: a saved one, an `.npz` file, or a recording with its transcript.

    errors: PromptError, AudioError, TextError; a prompt of toy codes is refused by a real codec
    """
    path = Path(voice)
    if path.is_file() and path.suffix != ".npz":
        return voice_from_recording(path, find_transcript(path, transcript), codec, tokenizer)
    found = find_prompt(voice, prompts_dir)
    prompt = load_prompt(found)
    if prompt.toy and not codec.is_toy:
        raise PromptError(
            f"{found}: made with toy weights, its codes are noise to the real model. Make it again: vallex "
            f"voice make {found.stem} WAV --text TRANSCRIPT"
        )
    return prompt
