"""The verbs about recordings: import, doctor of a folder, prepare. `finetune.cli` takes them in.

Nothing heavy is imported before one runs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import OfflineToy, Phonemizer, RecordingsOptions, UnknownWords, flag, make_tokenizer

CLIPS_PER_WORKER = 50
"""A worker takes seconds to start, for which it must have something to do."""
GPU_BYTES_PER_WORKER = 3_000_000_000
"""A minute of sound on its way through the encoder, with the process's own CUDA context."""


def import_verb(
    src: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Recordings, a table of paths and texts, a corpus, or lhotse manifests."
        ),
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where the LibriTTS layout goes.")],
    speaker: Annotated[
        str | None, typer.Option(help="Whose voice it is; a corpus knows its own speakers.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of texts and of what is heard: auto, en, zh, ja.")] = "auto",
    review: Annotated[
        Path | None, typer.Option(metavar="CSV", help="The review.csv of an import, edited.")
    ] = None,
    corpus: Annotated[
        str,
        typer.Option(help="auto, none, libritts, ljspeech, aishell, baker, or manifests (lhotse's own)."),
    ] = "auto",
    min_clip_sec: Annotated[float, typer.Option(help="Long recordings are cut no shorter (seconds).")] = 2.0,
    max_clip_sec: Annotated[float, typer.Option(help="Nor longer (seconds).")] = 14.0,
    edge_sec: Annotated[float, typer.Option(help="Silence left at both ends of a cut (seconds).")] = 0.2,
    asr: Annotated[
        str, typer.Option(help="Who hears what has no text: auto, whisper, pocketsphinx, none.")
    ] = "auto",
) -> None:
    """Bring recordings into LibriTTS layout, 24 kHz mono, cut and at one level. Again: only what is new.

    Each is taken with the .txt of its name beside it, or as metadata.csv or another table says; what has no
    text is cut at silences and heard. audio_sum.hdf5 of older trainers becomes a prepared set.
    Example: vallex import phone/ recordings/ --speaker anna
    """
    from rich.console import Console

    from finetune.data.hdf5 import find_hdf5, import_hdf5
    from finetune.data.import_view import import_view
    from finetune.data.importing import ImportSettings, import_recordings
    from finetune.data.prepare import PrepareSettings
    from finetune.data.segmentation import CutSettings
    from finetune.data.summary import summary_view
    from vallex.text import PhonemeTokenizer

    settings = ImportSettings(
        speaker=speaker,
        language=language,
        corpus=corpus,
        cut=CutSettings(min_clip_sec=min_clip_sec, max_clip_sec=max_clip_sec, edge_sec=edge_sec),
        asr=asr,
    )
    console = Console()
    if find_hdf5(src):
        console.print(summary_view(import_hdf5(src, dst, speaker, PrepareSettings(), PhonemeTokenizer())))
        console.print("A prepared set, as from vallex prepare: codes without recordings.", highlight=False)
        return
    with bars(console) as progress:
        summary = import_recordings(src, dst, settings, review, progress)
    console.print(import_view(summary, dst), highlight=False)


def look_at_recordings(data: Path, options: RecordingsOptions) -> bool:
    """`vallex doctor DATA`: shows and writes what is found; returns whether anything blocks."""
    from rich.console import Console

    from finetune.data.doctor import DoctorSettings, diagnose
    from finetune.data.doctor_page import write_page
    from finetune.data.doctor_report import CSV_NAME, HTML_NAME, JSON_NAME, doctor_view, write_reports

    settings = DoctorSettings(
        language=options.language,
        min_clip_sec=options.min_clip_sec,
        max_clip_sec=options.max_clip_sec,
        asr=options.asr,
        asr_max_sec=60 * options.asr_max_min,
    )
    tokenizer = make_tokenizer(options.phonemizer, options.unknown_words)
    console = Console()
    with bars(console) as progress:
        diagnosis = diagnose(data, settings, tokenizer, progress)
    write_reports(diagnosis, options.out)
    written = [CSV_NAME, JSON_NAME]
    if options.html:
        write_page(diagnosis, options.out / HTML_NAME)
        written.append(HTML_NAME)
    console.print(doctor_view(diagnosis), highlight=False)
    console.print(f"Written to {options.out}: {', '.join(written)}", highlight=False, markup=False)
    return diagnosis.blocks


def export_prepared(prepared: Path, out: Path) -> None:
    """`vallex export PREPARED OUT --format hdf5`."""
    from finetune.data.hdf5 import HDF5_NAME, LINES_NAME, export_hdf5

    for part, count in export_hdf5(prepared, out).items():
        typer.echo(f"{out / part}: {HDF5_NAME} and {LINES_NAME}, {count} utterances")


@contextmanager
def bars(console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left for each thing that is being done; nothing where there is no terminal."""
    from rich.progress import Progress

    from finetune.progress import ProgressFile

    file = ProgressFile()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)
            file.tell(what, done, total)

        yield show


def prepare(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder in LibriTTS layout, or one part.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the prepared set goes.")],
    language: Annotated[str, typer.Option(help="Of text outside tags: auto, en, zh, ja.")] = "auto",
    min_clip_sec: Annotated[float, typer.Option(help="Shorter clips are left out (seconds).")] = 0.5,
    max_clip_sec: Annotated[float, typer.Option(help="Longer clips are left out (seconds).")] = 14.0,
    split: Annotated[
        str,
        typer.Option(help="auto (parts named dev, valid or test, else a share), parts, speakers, share."),
    ] = "auto",
    valid_parts: Annotated[
        str | None, typer.Option(metavar="PART,PART", help="The parts for validation, by name.")
    ] = None,
    valid_share: Annotated[
        float, typer.Option(help="Share of the clips for validation; of whole speakers, at least.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice of that share, or of the speakers.")] = 0,
    phonemizer: Phonemizer = None,
    unknown_words: UnknownWords = "keep",
    devices: Annotated[
        str | None, typer.Option(help="Where to encode: cpu, or GPUs as in cuda:0,cuda:1.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes a device; by itself one for 50 clips, as cores and GPUs allow."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only encode the I-th of N shares (a job array).")
    ] = None,
    merge: Annotated[bool, flag("--merge", "Put together what shards encoded; encode nothing.")] = False,
    offline_toy: OfflineToy = False,
) -> None:
    """Turn recordings and their texts into codes and phonemes. Again: only what is missing.

    Example: vallex prepare recordings/ prepared/
    """
    from rich.console import Console

    from finetune.data.libritts import find_clips
    from finetune.data.prepare import PrepareSettings, encode_shard, parse_shard
    from finetune.data.prepare import prepare as prepare_set
    from finetune.data.summary import summary_view
    from vallex.codec import load_codec
    from vallex.errors import ConfigError

    if shard is not None and merge:
        raise ConfigError("--shard encodes a share and --merge puts shares together: give one of them")
    if shard is not None:
        parse_shard(shard)
    tokenizer = make_tokenizer(phonemizer, unknown_words)
    settings = PrepareSettings(
        language=language,
        min_clip_sec=min_clip_sec,
        max_clip_sec=max_clip_sec,
        split=split,
        valid_parts=tuple(valid_parts.split(",")) if valid_parts else (),
        valid_share=valid_share,
        seed=seed,
    )
    num_clips = len(find_clips(data)[0])  # a wrong folder is told before weights are asked for
    who = choose_workers(devices, workers, num_clips, offline_toy)
    codec = load_codec(toy=offline_toy)
    console = Console()
    with bars(console) as progress:
        show = partial(progress, "looking" if merge else "encoding")
        if shard is None:
            summary = prepare_set(data, out, settings, codec, tokenizer, show, who, is_merge=merge)
        else:
            num_encoded, num_all = encode_shard(data, out, settings, codec, tokenizer, shard, show, who)
    if shard is None:
        console.print(summary_view(summary))
    else:
        console.print(
            f"shard {shard}: encoded {num_encoded} of {num_all} clips; the others are there already, or "
            f"cannot be used. When all shards are done: vallex prepare {data} {out} --merge",
            highlight=False,
        )


def choose_workers(devices: str | None, num_workers: int | None, num_clips: int, toy: bool):
    """WorkerSettings, or None where this process on the CPU is enough.

    devices: names with commas between; None for the first GPU where there is one, else the CPU
    num_workers: on each device; None for one for CLIPS_PER_WORKER clips, at most one a core over all, and
        no more than a GPU has room for
    """
    import torch

    from finetune.data.encode import WorkerSettings

    names = tuple((devices or ("cuda:0" if torch.cuda.is_available() else "cpu")).split(","))
    settings = WorkerSettings(devices=names, num_workers=1 if num_workers is None else num_workers, toy=toy)
    if num_workers is None:
        wanted = min(os.cpu_count() or 1, num_clips // CLIPS_PER_WORKER) // len(names)
        room = [_num_that_fit(name) for name in names if name.startswith("cuda")]
        settings = replace(settings, num_workers=max(1, min([wanted, *room])))
    return None if names == ("cpu",) and settings.num_workers == 1 else settings


def _num_that_fit(gpu: str) -> int:
    """How many workers have room on a GPU."""
    import torch

    try:
        return torch.cuda.mem_get_info(gpu)[0] // GPU_BYTES_PER_WORKER
    except RuntimeError:  # no room even to ask; the one worker that is tried tells it
        return 0
