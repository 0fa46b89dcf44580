"""Episodes to and from LeRobot's datasets, version 3.0; 2.1 is read. Needs ``pip install "jepa-rl[lerobot]"``.

A dataset is a folder: tables in parquet files, pictures as PNG in these tables or as videos beside them, and
``meta/``. A row of it is an observation and the action that was taken there. In most datasets the observation after the
last action has no row: ``from_lerobot`` keeps N frames and N - 1 steps of an episode of N rows. ``to_lerobot`` writes
one row more than steps, whose action repeats the last one and whose reward is 0, and says so in ``meta/info.json``
(``jepa_rl``).
"""

from jepa_rl.envs.lerobot.reading import from_lerobot
from jepa_rl.envs.lerobot.writing import to_lerobot

__all__ = ["from_lerobot", "to_lerobot"]
