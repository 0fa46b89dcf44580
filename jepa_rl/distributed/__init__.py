"""Several processes that train one model, each on its share of the batch.

Under ``torchrun``, a script that trains inside ``join`` is one of several processes. ``fit`` then draws the same batch
in all of them, each process computes with its own rows, and ``descend`` averages the gradients. **The loss of the run
is the mean over processes of their losses**, so a mean over rows needs no care. What enters a loss otherwise, such as a
variance or a characteristic function, is taken over the rows of all processes by ``mean``, ``var`` and ``average``,
which have gradients. Random numbers of rows are drawn for all rows, of which a process takes its own (``own_draw``);
other numbers are the same in all processes, since their generators stay in step. So the run does not depend on the
number of processes.

Where the first process leads and the others help with parts of its work, it is ``alone`` in between and sends them what
they need (``tell``, ``told``).

With one process every function here is the identity, or what torch does without it.
"""

from jepa_rl.distributed.gradients import average_gradients, check_alike, copy_first
from jepa_rl.distributed.group import (
    ProcessLost,
    alone,
    by_first,
    is_first,
    is_together,
    join,
    processes,
    rank,
    together,
)
from jepa_rl.distributed.messages import tell, told
from jepa_rl.distributed.rows import check_divides, fewest, own_chunks, own_draw, own_rows, whole_batch
from jepa_rl.distributed.statistics import (
    BatchNorm,
    average,
    check_parts,
    gather,
    mean,
    moments,
    std,
    total,
    var,
)

__all__ = [
    "BatchNorm",
    "ProcessLost",
    "alone",
    "average",
    "average_gradients",
    "by_first",
    "check_alike",
    "check_divides",
    "check_parts",
    "copy_first",
    "fewest",
    "gather",
    "is_first",
    "is_together",
    "join",
    "mean",
    "moments",
    "own_chunks",
    "own_draw",
    "own_rows",
    "processes",
    "rank",
    "std",
    "tell",
    "together",
    "told",
    "total",
    "var",
    "whole_batch",
]
