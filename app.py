"""The browser page: `python app.py` is `vallex app`. Its widgets and callbacks are in finetune/page/."""

import sys

from finetune.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "app")
    main()
