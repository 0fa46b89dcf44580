"""Progress of what takes long: a bar in a terminal, a line every ten seconds where the output goes to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_SECONDS = 10.0  # between two lines where stderr is no terminal
_KNOWN = (
    "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}{unit}s, {elapsed} so far, {remaining} left{postfix}"
)
_UNKNOWN = "{desc}: {n_fmt}{unit}s, {elapsed} so far{postfix}"
SOON = 3.0  # what ends within so many seconds need not be shown (`delay`)
BAR_SECONDS = 0.1  # between two pictures of the bar in a terminal


class Progress:
    """A context manager that shows on stderr what runs, how far it is and how long it will take, and sums it up.

    In a terminal it is a bar of tqdm's, which the summary replaces. Elsewhere (a file, a pipe, a notebook) it prints at
    most one line every ``LINE_SECONDS``::

        with Progress("Encoding", len(pictures), "picture") as progress:
            for picture in pictures:
                ...
                progress.update()

    Args:
        name: of what runs, such as ``"Refining dynamics"``.
        total: units at the end; None if that is not known, which leaves out the estimated time.
        unit: what is counted, in the singular; its plural ends in s.
        initial: units that an earlier process did.
        shown: False prints nothing at all.
        delay: seconds before anything is shown; what ends earlier leaves no summary either.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "update",
        *,
        initial: int = 0,
        shown: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.name, self.unit, self._initial, self._delay = name, unit, initial, delay
        self._note = self._files = ""
        stream = sys.stderr  # None where there is no console at all (pythonw)
        self._terminal = stream is not None and stream.isatty()
        self._bar = (tqdm if self._terminal else _Lines)(
            desc=name, total=total, unit=f" {unit}", initial=initial, disable=not shown or stream is None,
            delay=delay, leave=False, dynamic_ncols=True, miniters=1, file=stream,
            mininterval=BAR_SECONDS if self._terminal else LINE_SECONDS,
            bar_format=None if self._terminal else _KNOWN if total else _UNKNOWN,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def update(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self._bar.update(count)

    def note(self, text: str) -> None:
        """What stands behind the numbers from now on, and in the summary, such as the last loss."""
        self._note = text
        self._bar.set_postfix_str(text, refresh=False)

    def files(self, where: Any) -> None:
        """Where the results are; for the summary."""
        self._files = str(where)

    def say(self, text: str) -> None:
        """Prints a line to stdout, above the bar; also where no progress is shown."""
        if self._terminal and not self._bar.disable:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bar = self._bar
        if bar.disable:
            return
        seconds, done = bar.format_dict["elapsed"], bar.n
        bar.close()
        if seconds >= self._delay:
            print(self._summary(done, seconds, stopped=kind is not None), file=bar.fp, flush=True)

    def _summary(self, done: int, seconds: float, stopped: bool) -> str:
        here, total = done - self._initial, self._bar.total
        text = f"{self.name}{' stopped' if stopped else ''}: {here:,} {self.unit}{'' if here == 1 else 's'}"
        if stopped and total is not None:
            text += f" ({done:,} of {total:,} in all)"
        elif self._initial:
            text += f" ({done:,} in all)"
        text += f" in {_time(seconds)}"
        if here and seconds > 0:
            text += f" ({here / seconds:.3g} a second)"
        return ", ".join([text, *filter(None, [self._note, self._files and f"files in {self._files}"])])


def track(items: Sequence[T], name: str, unit: str, **options: Any) -> Iterator[T]:
    """The items, one after the other, with their progress; ``options`` are those of ``Progress``."""
    with Progress(name, len(items), unit, **options) as progress:
        for item in items:
            yield item
            progress.update()


class _Lines(tqdm):
    """Whole lines, no carriage returns, and none before ``mininterval`` has passed."""

    def __init__(self, **options: Any) -> None:
        self._next = time.time() + options["delay"]
        super().__init__(**options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.time()
        if now < self._next:
            return False
        self._next = now + self.mininterval
        print(str(self) if msg is None else msg, file=self.fp, flush=True)
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """A line that is written stays."""

    def close(self) -> None:
        """Ends without a line of its own; the summary follows."""
        if not self.disable:
            self.disable: bool = True
            self._decr_instances(self)

    @staticmethod
    def status_printer(file: TextIO) -> Any:
        """tqdm's own would write carriage returns."""
        return lambda text: None


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
