"""The doctor's findings for people and programs: tables for a console, a CSV of faults, a JSON of all."""

import csv
import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from finetune.data.doctor import FAULTS, Diagnosis, Fault
from finetune.data.measures import ClipReport
from finetune.data.summary import PERCENTILES, summarize_split
from vallex.files import atomic_write

CSV_NAME, JSON_NAME, HTML_NAME = "faults.csv", "report.json", "report.html"
MAX_FAULTS_SHOWN = 30
MAX_HEARD_SHOWN = 10
MAX_SPEAKERS_SHOWN = 20


def statistics(diagnosis: Diagnosis) -> dict:
    """The usable clips in numbers: what lhotse's describe prints, phonemes, unknown words, speakers."""
    usable = [report for report in diagnosis.usable() if report.sound and report.text]
    values: dict = {
        "num_found": len(diagnosis.reports),
        "num_usable": len(usable),
        "num_faults": len(diagnosis.faults),
        "num_blocking": sum(fault.blocks for fault in diagnosis.faults),
        "faults": {name: count for name in FAULTS if (count := _counts(diagnosis.faults)[name])},
    }
    if not usable:
        return values
    speakers: dict[str, list[float]] = defaultdict(list)
    for report in usable:
        speakers[report.clip.speaker].append(report.sound.seconds)
    lengths = summarize_split(
        [report.sound.seconds for report in usable],
        [report.clip.speaker for report in usable],
        sum(report.text.num_phonemes for report in usable),
    )
    speech_sec = sum(report.sound.speech_sec for report in usable)
    words = Counter(word for report in usable for word in report.text.unknown_words)
    heard = [report.error_rate for report in usable if report.error_rate is not None]
    return values | {
        "lengths": asdict(lengths) | {"percentiles": list(PERCENTILES)},
        "speech_share": speech_sec / (lengths.hours * 3600),
        "silence_share": 1 - speech_sec / (lengths.hours * 3600),
        "num_phonemes": lengths.num_phonemes,
        "num_unknown_words": sum(words.values()),
        "unknown_words": dict(words.most_common()),
        "languages": dict(Counter("+".join(report.text.languages) for report in usable).most_common()),
        "text_sources": dict(Counter(report.text_source or "unknown" for report in usable).most_common()),
        "speakers": {
            name: {"num_clips": len(seconds), "seconds": sum(seconds)}
            for name, seconds in sorted(speakers.items())
        },
        "heard_by": diagnosis.heard_by,
        "num_heard": len(heard),
        "num_drafts": len(diagnosis.drafts),
        "mean_error_rate": float(np.mean(heard)) if heard else None,
    }


def write_reports(diagnosis: Diagnosis, folder: Path) -> None:
    """Writes faults.csv and report.json."""
    with (
        atomic_write(folder / CSV_NAME) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["level", "fault", "file", "value"])
        for fault in diagnosis.faults:
            table.writerow([FAULTS[fault.fault], fault.fault, fault.file, fault.value])
    report = {
        "data": str(diagnosis.data),
        "blocks": diagnosis.blocks,
        "statistics": statistics(diagnosis),
        "faults": [asdict(fault) | {"level": FAULTS[fault.fault]} for fault in diagnosis.faults],
        "clips": [_clip_row(report) for report in diagnosis.reports],
    }
    with atomic_write(folder / JSON_NAME) as temporary:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def worst_first(diagnosis: Diagnosis) -> list[ClipReport]:
    """The clips with faults: by the gravest, then by how much was heard otherwise, then by how many."""
    order = list(FAULTS)
    return sorted(
        (report for report in diagnosis.reports if report.faults),
        key=lambda report: (
            min(order.index(name) for name in report.faults),
            -(report.error_rate or 0.0),
            -len(report.faults),
            report.clip.id,
        ),
    )


def heard_worst(diagnosis: Diagnosis) -> list[ClipReport]:
    """The clips that were heard, the highest error rate first."""
    heard = [report for report in diagnosis.reports if report.error_rate is not None]
    return sorted(heard, key=lambda report: (-report.error_rate, report.clip.id))


def doctor_view(diagnosis: Diagnosis) -> Group:
    """Everything for a rich console; long tables are cut, the files have all of them."""
    parts = [_statistics_table(statistics(diagnosis))]
    if diagnosis.num_heard:
        parts.append(_heard_table(diagnosis))
    parts.append(_fault_table(diagnosis.faults) if diagnosis.faults else Text("No faults.", style="green"))
    parts += [Text(line) for line in _remarks(diagnosis)]
    return Group(*parts)


def _clip_row(report: ClipReport) -> dict:
    row = {
        "id": report.clip.id,
        "path": str(report.clip.path),
        "part": report.clip.part,
        "speaker": report.clip.speaker,
        "text": report.clip.text,
        "text_source": report.text_source,
        "faults": report.faults,
        "letters_a_second": report.letters_a_second,
        "heard": report.heard,
        "heard_language": report.heard_language,
        "error_rate": report.error_rate,
        "sound": None,
        "phonemes": None,
    }
    if report.sound:
        row["sound"] = asdict(report.sound) | {"silence_share": report.sound.silence_share}
    if report.text:
        row["phonemes"] = asdict(report.text)
    return row


def _counts(faults: list[Fault]) -> Counter:
    return Counter(fault.fault for fault in faults)


def _statistics_table(values: dict) -> Table:
    table = Table(title="Usable clips", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("clips", f"{values['num_usable']} of {values['num_found']}")
    if "lengths" not in values:
        return table
    lengths = values["lengths"]
    table.add_row("total", _clock(lengths["hours"] * 3600))
    for name in ("mean", "std", "min"):
        table.add_row(f"{name} (s)", f"{lengths[f'{name}_sec']:.2f}")
    for percentile, seconds in zip(PERCENTILES, lengths["percentiles_sec"], strict=True):
        table.add_row(f"{percentile} % (s)", f"{seconds:.2f}")
    table.add_row("max (s)", f"{lengths['max_sec']:.2f}")
    table.add_row("speech", f"{values['speech_share']:.1%}")
    table.add_row("silence", f"{values['silence_share']:.1%}")
    table.add_row("phonemes", str(values["num_phonemes"]))
    table.add_row("unknown words", str(values["num_unknown_words"]))
    table.add_row("languages", _listed(values["languages"]))
    if set(values["text_sources"]) != {"unknown"}:
        table.add_row("whose words", _listed(values["text_sources"]))
    if values["mean_error_rate"] is not None:
        table.add_row(f"word errors ({values['heard_by']})", f"{values['mean_error_rate']:.3f}")
    speakers = sorted(values["speakers"].items(), key=lambda item: -item[1]["seconds"])
    for name, speaker in speakers[:MAX_SPEAKERS_SHOWN]:
        table.add_row(Text(f"speaker {name}"), f"{speaker['seconds']:.1f} s in {speaker['num_clips']}")
    if len(speakers) > MAX_SPEAKERS_SHOWN:
        table.add_row("speakers more", str(len(speakers) - MAX_SPEAKERS_SHOWN))
    return table


def _heard_table(diagnosis: Diagnosis) -> Table:
    title = f"Word error rate, worst first (heard by {diagnosis.heard_by}: {diagnosis.num_heard} clips)"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("WER", justify="right")
    table.add_column("clip", overflow="fold")
    table.add_column("text / heard", overflow="fold")
    for report in heard_worst(diagnosis)[:MAX_HEARD_SHOWN]:
        both = Text(f"{report.clip.text}\n{report.heard or '(nothing)'}")
        table.add_row(f"{report.error_rate:.2f}", Text(report.clip.id), both)
    return table


def _fault_table(faults: list[Fault]) -> Table:
    counts = ", ".join(f"{count} {name}" for name, count in _counts(faults).most_common())
    table = Table(title=f"Faults: {counts}", title_justify="left")
    table.add_column("fault")
    table.add_column("file", overflow="fold")
    table.add_column("value", overflow="fold")
    for fault in faults[:MAX_FAULTS_SHOWN]:
        style = "red" if fault.blocks else "yellow"
        table.add_row(Text(fault.fault, style=style), Text(fault.file), Text(fault.value))
    return table


def _remarks(diagnosis: Diagnosis) -> list[str]:
    lines = []
    if (more := len(diagnosis.faults) - MAX_FAULTS_SHOWN) > 0:
        lines.append(f"{more} faults more are in the files below.")
    num_blocking = sum(fault.blocks for fault in diagnosis.faults)
    if num_blocking:
        lines.append(f"{num_blocking} faults block: these files are of no use as they are.")
    if diagnosis.drafts:
        lines.append(
            f"{len(diagnosis.drafts)} texts are what a recognizer heard, and nobody has read them: edit the "
            "import's review.csv and give it back."
        )
    if diagnosis.deaf:
        lines.append(f"No clip was heard against its text: {diagnosis.deaf}")
    elif diagnosis.heard_by and diagnosis.num_heard < len(diagnosis.usable()):
        lines.append(
            f"{diagnosis.num_heard} of {len(diagnosis.usable())} clips were heard against their texts by "
            f"{diagnosis.heard_by} (not its own drafts, nor beyond --asr-max-min)."
        )
    return lines


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
