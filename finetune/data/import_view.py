"""What an import did, as people are shown it."""

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from finetune.data.importing import LEFT_OUT_NAME, ImportSummary

_MAX_SHOWN = 10


def import_view(summary: ImportSummary, dst: Path) -> Group:
    """The summary for a rich console: numbers, what was left out, what to do next."""
    table = Table(title="Imported", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("from", "loose recordings" if summary.corpus == "none" else f"{summary.corpus} (lhotse)")
    table.add_row("clips", f"{summary.num_clips}, {summary.num_new} of them new")
    table.add_row("minutes", f"{summary.seconds / 60:.1f}")
    if summary.num_reviewed:
        table.add_row("reviewed", f"{summary.num_reviewed} clips changed")
    sources = (f"{count} {source or 'without text'}" for source, count in summary.text_sources.items())
    table.add_row("whose words", ", ".join(sources))
    return Group(table, *_left_out(summary, dst), *_next(summary, dst))


def _left_out(summary: ImportSummary, dst: Path) -> list[Text]:
    """The first of what is in no clip, and where all of it stands."""
    lines = [f"{skip.path.name}: {skip.reason}, {skip.detail}" for skip in summary.skipped]
    lines += [
        f"{Path(path).name} {part['start_sec']:.1f}-{part['end_sec']:.1f} s: {part['reason']}"
        for path, part in summary.left_out
    ]
    if not lines:
        return []
    more = f", the first {_MAX_SHOWN} of them" if len(lines) > _MAX_SHOWN else ""
    title = f"Left out: {len(lines)} (all in {dst / LEFT_OUT_NAME}){more}:"
    return [Text(title, style="yellow"), *(Text(f"  {line}") for line in lines[:_MAX_SHOWN])]


def _next(summary: ImportSummary, dst: Path) -> list[Text]:
    lines = []
    if summary.deaf:
        lines.append(f"{summary.text_sources.get('', 0)} clips have no text: {summary.deaf}.")
    if set(summary.text_sources) - {"given", "reviewed"}:
        lines.append(
            f"Texts that were heard are drafts: edit {summary.review} and give it back: the same command with"
            f" --review {summary.review}"
        )
    return [Text(line) for line in [*lines, f"Then: vallex doctor {dst}, vallex prepare {dst} OUT"]]
