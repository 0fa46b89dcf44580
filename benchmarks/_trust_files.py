"""Damaged files: refused in words that name the file, or read as they were written; nothing else happens.

Escaped is whatever else comes of reading one: another error than ``ValueError`` or ``OSError``, one that does not name
the file, other content than was written, a crash or a hang of the interpreter, memory, an executed program, or a path
outside the folder. Files whose damage was sealed again with the right checksum may also be read as what they say now.
Batches run in forked processes, so that a crash is seen.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _trust_mutations import mutate
from _trust_runs import quiet, warm
from _trust_subjects import SUBJECTS, Subject, make

BATCH, SECONDS, MEMORY = 100, 20, 2**30  # bytes that reading a small file may take
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


def run(
    tries: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Damages ``tries`` files; ``known`` and ``keep`` as for ``_trust_kills.run``."""
    warm()
    shutil.rmtree(folder, ignore_errors=True)
    folder = folder.resolve()
    _alone(lambda: make(folder / "originals"))
    found, total = dict(known), sum(subject.share for subject in SUBJECTS.values())
    for name, subject in SUBJECTS.items():
        if name not in found:
            found[name] = storm(name, subject, max(4, -(-int(tries * subject.share) // int(total))), folder)
            keep(found)
    counts = [kind["outcomes"] for kind in found.values()]
    return {
        "files_tried": sum(sum(kind.values()) for kind in counts),
        "files_escaped": sum(kind.get("escaped", 0) for kind in counts),
        "kinds": found,
    }


def storm(name: str, subject: Subject, tries: int, folder: Path) -> dict[str, Any]:
    """Damages files of one kind; counts of outcomes, and the first escapes in words."""
    outcomes: Counter[str] = Counter()
    escapes: Counter[str] = Counter()
    first: dict[str, int] = {}
    case = 0
    while case < tries:
        last = min(case + BATCH, tries)
        reports, ended = _batch(name, subject, range(case, last), folder)
        for number, (outcome, words) in enumerate(reports, case):
            outcomes[outcome] += 1
            if outcome == "escaped":
                first.setdefault(words, number)
                escapes[words] += 1
        case += len(reports)
        if case < last:  # the process died while it read this one
            outcomes["escaped"] += 1
            how = (
                f"it used {SECONDS} s"
                if ended == signal.SIGPROF
                else f"the interpreter ended with status {ended}"
            )
            escapes[f"case {case}: {how}"] = 1
            case += 1
    told = {
        f"{words}, such as case {first.get(words, '')}": count for words, count in escapes.most_common(30)
    }
    return {"outcomes": dict(outcomes), "escapes": told}


def _batch(name: str, subject: Subject, cases: range, folder: Path) -> tuple[list[tuple[str, str]], int]:
    """Outcomes of some cases, in order, fewer than asked for if the process died; and how it ended."""
    report = folder / "report.jsonl"
    report.unlink(missing_ok=True)
    ended = _alone(lambda: _read_cases(name, subject, cases, folder, report), check=False)
    lines = report.read_text().splitlines() if report.exists() else []
    return [tuple(json.loads(line)) for line in lines], ended


def _alone(work: Callable[[], None], check: bool = True) -> int:
    """Runs something in a forked process; the signal that ended it, or its exit status below 0."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if check and status:
        raise RuntimeError("the originals could not be made; see above")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def _read_cases(name: str, subject: Subject, cases: range, folder: Path, report: Path) -> None:
    original, case = folder / "originals" / name, folder / "case"
    quiet()
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(original, case)
    expected = subject.load(case)  # imports what is imported late, too
    happened: list[str] = []
    _watch(folder, happened)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with open(report, "a") as out:
        for number in cases:
            rng = random.Random(f"{name} {number}")
            shutil.rmtree(case)
            shutil.copytree(original, case)
            pattern = rng.choice(subject.files)
            path = rng.choice(sorted(case.glob(pattern)))
            way, content = mutate(path.read_bytes(), path.name, rng)
            path.write_bytes(content)
            happened.clear()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its own time, however busy the machine is
            outcome, words = _outcome(subject, case, path, expected, way)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if happened:
                outcome, words = "escaped", happened[0]
            out.write(json.dumps([outcome, f"{path.name}, {way}: {words}"]) + "\n")
            out.flush()


def _outcome(subject: Subject, case: Path, path: Path, expected: str, way: str) -> tuple[str, str]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = subject.load(case)
    except (ValueError, OSError) as error:
        raw = isinstance(error, UnicodeError | json.JSONDecodeError)
        if raw or str(case) not in str(error):
            return "escaped", f"does not name the file: {_where(error)}"
        outcome = "refused", ""
    except UserWarning:  # of a store whose last line is unfinished
        outcome = "refused", ""
    except BaseException as error:
        return "escaped", _where(error)
    else:
        if found == expected:
            outcome = "equal", ""
        elif way == "reseal" or not subject.whole:
            outcome = "as it says", ""
        else:
            return "escaped", "read as something else"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > MEMORY / 2 / 1024:
        return "escaped", "took too much memory"
    return outcome


def _where(error: BaseException) -> str:
    """An error without what differs from case to case, and the last line of the library that it came from."""
    library = [f for f in traceback.extract_tb(error.__traceback__) if "_trust" not in f.filename]
    ours = [f for f in library if "site-packages" not in f.filename and "/lib/python" not in f.filename]
    frame = (ours or library or [None])[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}" if frame else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:90]!r}"


def _watch(folder: Path, happened: list[str]) -> None:
    """Notes programs that are started, pickles that are read, and files that are opened elsewhere."""
    system = ("/proc", "/sys", "/dev", "/usr/lib", "/usr/share", "/etc/localtime")
    code = (
        sys.prefix,
        sys.base_prefix,
        Path(__file__).parents[1],
        *(Path(p).resolve() for p in sys.path if p),
    )
    allowed = (str(folder), *system, *map(str, code))

    def hook(event: str, args: tuple) -> None:
        if event in FORBIDDEN:
            happened.append(f"{event} {args[:1]!r:.80}")
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0])) if b"\0" not in os.fsencode(args[0]) else ""
            writing = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            places = (str(folder / "case"), "/dev/null", str(folder / "report.jsonl")) if writing else allowed
            if path and not path.startswith(places):
                happened.append(f"opened {path}")

    sys.addaudithook(hook)
