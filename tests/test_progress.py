"""Progress in a terminal, in a log file and without a console; ``progress.csv`` under growth, resume and kill."""

import csv
import io
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from jepa_rl import progress
from jepa_rl.csv_log import CSVLog, read_csv
from jepa_rl.progress import Progress, track


def test_a_log_file_gets_whole_lines_a_few_seconds_apart(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.2)
    began = time.perf_counter()
    with Progress("Refining dynamics", 1000, initial=400) as bar:
        bar.files("runs/x")
        for i in range(600):
            time.sleep(0.001)
            bar.note(f"loss {i}")
            bar.update()
    seconds, written = time.perf_counter() - began, capsys.readouterr().err
    *lines, summary = written.splitlines()
    assert "\r" not in written and written.endswith("\n")
    assert 3 <= len(lines) <= 1 + seconds / 0.2
    assert lines[0].startswith("Refining dynamics: 40%, 400 of 1000 updates")
    assert all(line.startswith("Refining dynamics: ") and " left" in line for line in lines)
    assert summary.startswith("Refining dynamics: 600 updates (1,000 in all) in ")
    assert summary.endswith("a second), loss 599, files in runs/x")


def test_what_is_over_soon_is_not_shown(capsys):
    assert list(track(range(3), "Encoding", "state", delay=5.0)) == [0, 1, 2]
    with Progress("Training", 3, shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_an_error_is_part_of_the_summary_and_goes_on(capsys):
    with pytest.raises(KeyError), Progress("Collecting", 30, "step") as bar:
        bar.update(4)
        raise KeyError
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("Collecting stopped: 4 steps (4 of 30 in all) in ")
    )


def test_a_terminal_gets_a_bar_that_the_summary_replaces(monkeypatch):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("Joint training", 5) as bar:
            for _ in range(5):
                time.sleep(0.12)
                bar.update()
        monkeypatch.undo()
        shown = b""
        while b" updates in " not in shown:
            shown += os.read(ours, 100_000)
    os.close(ours)
    assert b"\rJoint training:  20%|" in shown and b" 1/5 [" in shown
    assert shown.rpartition(b"\r\n")[0].rpartition(b"\r")[2].startswith(b"Joint training: 5 updates in ")


def test_no_console_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("Training", 2) as bar:
        bar.update()
        bar.note("loss 1")


# -- progress.csv -----------------------------------------------------------------------------------


def test_lines_and_columns_grow(tmp_path):
    log = CSVLog(tmp_path / "progress.csv")
    log.write(5, {"loss": 0.5})
    log.write(10, {"loss": 0.25, "eval/mean": float("nan"), 'a "text", it': "x, y\nz"})
    log.write(15, {"loss": 0.1})
    rows = list(csv.DictReader(io.StringIO((tmp_path / "progress.csv").read_text())))
    assert [row["step"] for row in rows] == ["5", "10", "15"]
    assert [row["loss"] for row in rows] == ["0.5", "0.25", "0.1"]
    assert [row["eval/mean"] for row in rows] == ["", "nan", ""]
    assert rows[1]['a "text", it'] == "x, y\nz"


def test_a_resumed_run_drops_later_lines_and_an_unfinished_one(tmp_path):
    file = tmp_path / "progress.csv"
    log = CSVLog(file)
    for step in (5, 10, 15):
        log.write(step, {"loss": step / 10})
    file.write_bytes(file.read_bytes() + b"20,2.")  # killed in the middle of a line
    assert [row[0] for row in read_csv(file)[1]] == ["5", "10", "15"]
    CSVLog(file, keep_to=10).write(15, {"loss": 7.0})
    assert read_csv(file) == (["step", "loss"], [["5", "0.5"], ["10", "1.0"], ["15", "7.0"]])
    CSVLog(file, keep_to=None).write(16, {"other": 1})
    assert len(read_csv(file)[1]) == 4
    CSVLog(file)
    assert read_csv(file) == (["step"], [])


@pytest.mark.parametrize("content", ["time,loss\n1,2\n", "step,loss\nmany,2\n"])
def test_foreign_files_are_kept_and_refused(tmp_path, content):
    (tmp_path / "progress.csv").write_text(content)
    with pytest.raises(ValueError, match=r"progress.csv (begins with|has the step)"):
        CSVLog(tmp_path / "progress.csv")
    assert (tmp_path / "progress.csv").read_text() == content


def test_a_header_that_was_cut_off_is_begun_anew(tmp_path):
    (tmp_path / "progress.csv").write_text("step,lo")
    CSVLog(tmp_path / "progress.csv").write(1, {"loss": 2.0})
    assert read_csv(tmp_path / "progress.csv") == (["step", "loss"], [["1", "2.0"]])


WRITER = """
import sys
from jepa_rl.csv_log import CSVLog
log = CSVLog(sys.argv[1], keep_to=None)
for step in range(10**9):
    log.write(step, {"loss": step / 7, f"metric_{step // 20 % 300}": "long " * 200})
    if not step:
        print("ready", flush=True)
"""


def test_a_kill_while_lines_and_headers_are_written_leaves_whole_lines(tmp_path):
    file = tmp_path / "progress.csv"
    for seconds in (0.05, 0.21):
        file.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        columns, rows = read_csv(file)
        assert rows and columns[:2] == ["step", "loss"]
        for step, row in enumerate(rows):
            values = dict(zip(columns, row, strict=False))
            assert int(values["step"]) == step and float(values["loss"]) == step / 7
            assert values[f"metric_{step // 20 % 300}"] == "long " * 200
