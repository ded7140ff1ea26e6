"""The verb `vallex say`: one text, the rest of a recording, or a list of texts."""

from collections.abc import Callable
from pathlib import Path

from vallex.cli.options import (
    Heads,
    OfflineToy,
    Phonemizer,
    RunsDir,
    Transcript,
    UnknownWords,
    check_adapter,
    check_wav_folder,
    check_wav_name,
    load_any_model,
    make_tokenizer,
)
from vallex.cli.say_options import (
    Accent,
    Adapter,
    AdapterScale,
    BestOf,
    Checkpoint,
    Continued,
    KeepSec,
    Language,
    Listed,
    LongText,
    Out,
    Precision,
    Redraws,
    RepetitionAware,
    RepetitionPenalty,
    Seed,
    Temperature,
    Text,
    TopK,
    TopP,
    Vocoder,
    Voices,
)
from vallex.cli.spoken import Output, say_list, say_on, say_text
from vallex.errors import ConfigError

DEFAULT_KEEP_SEC = 3.0
"""As in VALL-E's continuations."""


def say_verb(resolve_checkpoint: Callable[[str, Path], Path]) -> Callable:
    """`vallex say`, with run names resolved by `resolve_checkpoint`."""

    def say(
        out: Out,
        text: Text = None,
        voice: Voices = None,
        transcript: Transcript = None,
        listed: Listed = None,
        continued: Continued = None,
        keep_sec: KeepSec = None,
        checkpoint: Checkpoint = None,
        adapter: Adapter = None,
        adapter_scale: AdapterScale = None,
        runs: RunsDir = Path("runs"),
        precision: Precision = "float32",
        vocoder: Vocoder = "vocos",
        language: Language = "auto",
        accent: Accent = None,
        phonemizer: Phonemizer = None,
        unknown_words: UnknownWords = "keep",
        temperature: Temperature = 1.0,
        top_k: TopK = None,
        top_p: TopP = None,
        repetition_aware: RepetitionAware = None,
        repetition_penalty: RepetitionPenalty = 1.0,
        seed: Seed = 0,
        best_of: BestOf = 1,
        redraws: Redraws = 3,
        long: LongText = "fixed",
        heads: Heads = None,
        offline_toy: OfflineToy = False,
    ) -> None:
        """Speak a text in a voice, speak on from the beginning of a recording, or speak a list of texts.

        Example: vallex say "Good morning." --voice anna --checkpoint my-run -o morning.wav
        """
        from vallex.codec import load_codec, load_vocoder
        from vallex.inference.long_text import check_mode
        from vallex.inference.synthesizer import SpeakSettings, Synthesizer
        from vallex.inference.voices import obtain_voices

        _check_task(text, listed, continued, keep_sec, voice)
        (check_wav_folder if listed else check_wav_name)(out)
        path = None if checkpoint is None else resolve_checkpoint(checkpoint, runs)
        adapter_path = None if adapter is None else resolve_checkpoint(adapter, runs)
        check_adapter(adapter_path, adapter_scale)
        check_mode(long)
        settings = SpeakSettings(
            language=language,
            accent=accent,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_aware=repetition_aware,
            repetition_penalty=repetition_penalty,
            seed=seed,
            best_of=best_of,
            max_redraws=redraws,
        )
        tokenizer = make_tokenizer(phonemizer, unknown_words)
        model = load_any_model(path, offline_toy, heads, adapter_path, adapter_scale, precision)
        codec = load_codec(toy=offline_toy)
        synthesizer = Synthesizer(model, load_vocoder(vocoder, codec=codec, toy=offline_toy), tokenizer)
        output = Output(
            path=out,
            model_name=_model_name(adapter_path or path, offline_toy),
            is_toy=offline_toy or bool(model.provenance.get("toy")),
        )
        if continued is not None:
            keep_sec = DEFAULT_KEEP_SEC if keep_sec is None else keep_sec
            say_on(synthesizer, codec, continued, keep_sec, text or transcript, settings, output)
            return
        prompt = obtain_voices(voice, transcript, codec, tokenizer) if voice else None
        if listed is not None:
            say_list(synthesizer, codec, listed, prompt, settings, long, output)
        else:
            say_text(synthesizer, text, prompt, settings, long, output)

    return say


def _check_task(
    text: str | None,
    listed: Path | None,
    continued: Path | None,
    keep_sec: float | None,
    voice: list[str] | None,
) -> None:
    """Refuses no text at all, and what does not go together."""
    if keep_sec is not None and continued is None:
        raise ConfigError(
            f"--keep-sec is {keep_sec:g} and there is no --continue-from: name a recording, or leave it out"
        )
    if listed is not None:
        others = {"TEXT": text, "--continue-from": continued}
        for name in [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"--list {listed} and {name}: a list has its own texts; leave one of them out")
    elif continued is not None and voice:
        raise ConfigError(
            f"--continue-from {continued} and --voice {voice[0]}: the recording is the voice; leave one of "
            "them out"
        )
    elif continued is None and text is None:
        raise ConfigError("there is nothing to say: give a TEXT, --list FILE or --continue-from WAV")


def _model_name(path: Path | None, offline_toy: bool) -> str:
    from vallex.model.runs import is_adapter

    if path is None:
        return "toy model" if offline_toy else "released model"
    return path.parent.name if is_adapter(path) else path.name
