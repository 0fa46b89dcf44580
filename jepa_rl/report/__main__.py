"""``python -m jepa_rl.report RUN``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jepa_rl.files import write_atomic
from jepa_rl.report import page, read_run, text


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the summary and writes the page.

    Returns:
        0; 1 if the page could not be written (the summary is printed), 2 if there is nothing to report.
    """
    parser = argparse.ArgumentParser("python -m jepa_rl.report", description=__doc__, allow_abbrev=False)
    parser.description = "Summarise a run folder: text on stdout, and one HTML page with curves and pictures."
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; default: RUN/report.html")
    parser.add_argument("--text", action="store_true", help="only the text, no page")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(run))
    if options.text:
        return 0
    where = options.out or options.run / "report.html"
    try:
        write_atomic(where, page(run).encode())
    except OSError as error:
        print(
            f"\nerror: the page could not be written to {where} ({error.strerror or error})", file=sys.stderr
        )
        print("Choose another place with --out FILE.html; --text asks for no page", file=sys.stderr)
        return 1
    print(f"\nwrote {where}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
