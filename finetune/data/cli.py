"""The verb `vallex prepare`. `finetune.cli` takes it in; nothing heavy is imported before it runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli import OfflineToy, Phonemizer, UnknownWords, flag, make_tokenizer

CLIPS_PER_WORKER = 50
"""A worker takes seconds to start, for which it must have something to do."""


def prepare(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder in LibriTTS layout, or one part.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the prepared set goes.")],
    language: Annotated[str, typer.Option(help="Of text outside tags: auto, en, zh, ja.")] = "auto",
    min_clip_sec: Annotated[float, typer.Option(help="Shorter clips are left out (seconds).")] = 0.5,
    max_clip_sec: Annotated[float, typer.Option(help="Longer clips are left out (seconds).")] = 14.0,
    valid_share: Annotated[
        float, typer.Option(help="Share for validation, where no part is named dev, valid or test.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice of that share.")] = 0,
    phonemizer: Phonemizer = None,
    unknown_words: UnknownWords = "keep",
    devices: Annotated[
        str | None, typer.Option(help="Where to encode: cpu, or GPUs as in cuda:0,cuda:1.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes a device; by itself one for 50 clips, at most one a core.")
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
    from rich.progress import Progress

    from finetune.data.encode import WorkerSettings
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
        valid_share=valid_share,
        seed=seed,
    )
    num_clips = len(find_clips(data)[0])  # a wrong folder is told before weights are asked for
    names = tuple((devices or default_device()).split(","))
    num_workers = min(os.cpu_count() or 1, num_clips // CLIPS_PER_WORKER) if workers is None else workers
    if workers is None:
        num_workers = max(num_workers, 1)
    worker_settings = WorkerSettings(devices=names, num_workers=num_workers, toy=offline_toy)
    is_alone = len(names) == 1 and num_workers == 1
    codec = load_codec(toy=offline_toy, device=names[0] if is_alone else "cpu")
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if shard is None:
            summary = prepare_set(
                data,
                out,
                settings,
                codec,
                tokenizer,
                progress=show,
                workers=None if is_alone or merge else worker_settings,
                is_merge=merge,
            )
        else:
            num_encoded, num_all = encode_shard(data, out, settings, worker_settings, shard, show)
    if shard is None:
        console.print(summary_view(summary))
    else:
        console.print(
            f"shard {shard}: encoded {num_encoded} of {num_all} clips; the others are there already, or "
            f"cannot be used. When all shards are done: vallex prepare {data} {out} --merge",
            highlight=False,
        )


def default_device() -> str:
    """The first GPU where there is one, else the CPU."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
