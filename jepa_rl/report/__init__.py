"""A summary of a run folder, as text and as one self-contained HTML page: ``python -m jepa_rl.report RUN``."""

from jepa_rl.report.page import page
from jepa_rl.report.run import Run, read_run
from jepa_rl.report.text import text

__all__ = ["Run", "page", "read_run", "text"]
