"""A verb of the command line as the page runs it: `python -m finetune.page.work FOLDER VERB …`.

How it ended stays in FOLDER, because the page that began it may be gone by then. SIGTERM ends it as Ctrl-C
would, which a process ignores that was started by one in the background.
"""

import json
import os
import signal
import sys
from pathlib import Path

from finetune.cli import INTERRUPTED, main
from finetune.progress import PROGRESS_VARIABLE
from vallex.files import atomic_write

PROGRESS_FILE, END_FILE = "progress.json", "end.json"
DEFECT = 70
"""How a verb ends that raises what it should not."""


def run(folder: Path, arguments: list[str]) -> int:
    """Runs `vallex` with these arguments, writes how it ended, and returns its exit code."""
    code = DEFECT
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os.environ[PROGRESS_VARIABLE] = str(folder / PROGRESS_FILE)
        sys.argv = ["vallex", *arguments]
        main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        with atomic_write(folder / END_FILE) as temporary:
            temporary.write_text(json.dumps({"code": code}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
