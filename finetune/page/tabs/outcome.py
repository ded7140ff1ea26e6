"""What the page says and shows of speech: how far it is, how it ended, players, picture, files."""

import html
import re

from finetune.page.engine import CANCELLED, DONE, LOADING, WAITING, Engine, Job
from finetune.page.pictures import sound_picture
from finetune.page.requests import ZIP, Part
from finetune.page.tabs.words import bad, empty, good, plain
from vallex.codec.audio import load_audio
from vallex.doctor import text_facts
from vallex.files import atomic_write
from vallex.text import PhonemeEncoding

ENDED = {
    "eos": "ended by itself",
    "budget": "ran on and was cut off",
    "loop": "repeats itself",
    "empty": "was not said at all",
}
MAX_PLAYERS = 20
_TITLE_CHARS = 60


def stopping_line(job: Job) -> str:
    """That a job is at its end soon."""
    if job.status == LOADING:
        return f"Stopping as soon as {job.request.checkpoint} has been loaded …"
    return "Stopping …"


def progress_view(engine: Engine, job: Job) -> str:
    """How far a job is."""
    if job.is_stopping:
        return plain(stopping_line(job))
    if job.status == WAITING:
        before = engine.num_before(job)
        return plain(f"Waiting: {before} before you." if before else "Waiting.")
    if job.status == LOADING:
        return plain(f"Loading {job.request.checkpoint} …")
    done = f"{len(job.parts)} of {job.num_parts} {job.request.what}"
    return plain(f"Speaking: {done}, {job.seconds:.1f} s so far.")


def outcome_view(job: Job) -> str:
    """How it ended, in words."""
    if job.status == CANCELLED:
        return plain(f"Stopped after {job.seconds:.1f} s.")
    if job.status != DONE:
        return bad(str(job.error))
    unwell = [part for part in job.parts if part.ended != "eos"]
    how = ENDED["eos"]
    if unwell:
        how = "; ".join(f"“{plain_text(p.text)}” {ENDED.get(p.ended, p.ended)}" for p in unwell)
        how += " (try another seed)"
    line = f"{job.seconds:.1f} s by {job.request.checkpoint}, seed {job.request.settings.seed}: {how}."
    unsaid = list(dict.fromkeys(word for part in job.parts for word in part.unsaid))
    if unsaid:
        line += f" Not in any dictionary, or without sound: {' '.join(unsaid)}."
    return good(line) if not unwell else plain(line)


def streaming_player(job: Job) -> str:
    """A player that begins as soon as something is spoken; a list's texts have players of their own."""
    if ZIP in job.request.saved_kinds:
        return ""
    # the player's own download is the stream, without a name and a length
    return (
        '<audio controls controlslist="nodownload" autoplay aria-label="The speech" '
        f'src="/speech/{job.token}.wav"></audio>'
    )


def picture_view(engine: Engine, job: Job) -> str:
    """Waveform and spectrogram of what was spoken as one; of a list, a player of each text."""
    if not job.seconds:
        return empty("No sound was made.")
    if ZIP in job.request.saved_kinds:
        return _players(job)
    path = engine.save(job, "wav")
    with atomic_write(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(sound_picture(load_audio(path)))
    return (
        f'<img src="/speech/{job.token}.png" width="900" height="260" '
        f'alt="Waveform and spectrogram of {job.seconds:.1f} seconds of speech">'
    )


def reading_view(encoding: PhonemeEncoding) -> str:
    """The phonemes of a text, their languages, and what of it is lost."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(heading.capitalize())}</th><td>{html.escape(value)}</td></tr>'
        for heading, value in text_facts(encoding)
    )
    return f'<table class="plain">{rows}</table>'


def downloads_view(job: Job) -> str:
    """Links to what was spoken, a file of each kind."""
    if not job.seconds:
        return ""
    links = [
        f'<a id="download-{kind}" href="/speech/{job.token}.{kind}" download="{file_name(job, kind)}" '
        f'aria-label="Download as {kind}">{kind}</a>'
        for kind in job.request.saved_kinds
    ]
    return f'<div class="downloads"><span>Download as</span>{"".join(links)}</div>'


def file_name(job: Job, kind: str) -> str:
    """What a downloaded file is called: by its first words, who spoke them, and the seed."""
    words = "-".join(re.findall(r"\w+", plain_text(job.request.text)))[:40].strip("-_")
    checkpoint = re.sub(r"[^\w.@-]", "-", job.request.checkpoint)
    return f"{words or 'speech'}_{checkpoint}_seed-{job.request.settings.seed}.{kind}"


def plain_text(tagged: str) -> str:
    """A text without its language tags."""
    return re.sub(r"\[[A-Z]{2}\]", "", tagged).strip()


def _players(job: Job) -> str:
    parts = sorted((part for part in job.parts if part.pcm), key=lambda part: part.number)
    rows = "".join(_player(job, part) for part in parts[:MAX_PLAYERS])
    more = len(parts) - MAX_PLAYERS
    note = f'<p class="note">{more} more are in the zip.</p>' if more > 0 else ""
    return f'<div class="side">{rows}</div>{note}'


def _player(job: Job, part: Part) -> str:
    text = plain_text(part.text)
    short = text if len(text) <= _TITLE_CHARS else f"{text[:_TITLE_CHARS]}…"
    title = html.escape(f"{part.number}. {short}")
    return (
        f'<div class="player"><p>{title}</p><audio controls controlslist="nodownload" preload="none" '
        f'aria-label="{title}" src="/speech/{job.token}/{part.number}.wav"></audio></div>'
    )
