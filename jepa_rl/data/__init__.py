"""Episodes in, training windows out: arrays on disk, nothing that speaks Gymnasium.

``Episode`` is one recorded episode, ``EpisodeStore`` keeps many of them in a folder that may outgrow
memory, and ``WindowSampler`` cuts training batches out of them. ``jepa_rl.envs.collect`` fills a store.
"""

from jepa_rl.data.episode import Episode
from jepa_rl.data.store import EpisodeStore
from jepa_rl.data.view import Episodes, EpisodeView
from jepa_rl.data.windows import PairBatch, WindowSampler

__all__ = ["Episode", "Episodes", "EpisodeStore", "EpisodeView", "PairBatch", "WindowSampler"]
