"""What off-policy algorithms with a replay of whole episodes share."""

from __future__ import annotations

import io
from pathlib import Path

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.spaces import by_name


class WholeEpisodes(OffPolicyAlgorithm):
    """Ends the episodes in the replay where the environments are reset; a subclass says where they are stored."""

    _unstored = False  # whether a step was begun and is not in the replay yet

    @property
    def _episodes(self) -> EpisodeReplay | None:
        """The replay's episodes; None if there is no replay yet."""
        raise NotImplementedError

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As in Stable-Baselines3; running episodes are cut off at their present state."""
        seen = self._last_obs
        super().set_env(env, force_reset)
        if seen is not None and self._last_obs is None and self._episodes is not None:
            self._episodes.cut(by_name(seen))

    def _end_running_episodes(self, reset_num_timesteps: bool) -> bool:
        """Ends the running episodes if ``learn`` resets all environments; whether it does.

        That includes the case of a step that was begun and not stored (a callback or an exception ended the training):
        the environments' state is unknown.
        """
        if not (reset_num_timesteps or self._last_obs is None or self._unstored):
            return False
        episodes = self._episodes
        assert episodes is not None, "learn makes the replay first"
        if self._last_obs is not None:
            episodes.cut(by_name(self._last_obs))
        episodes.forget_running()
        self._last_obs, self._unstored = None, False
        return True


def replay_path(path: str | Path | io.BufferedIOBase) -> Path:
    """Where a replay is saved.

    Raises:
        TypeError: for an open file.
    """
    if isinstance(path, io.BufferedIOBase):
        raise TypeError(
            f"a replay is saved under a path, not in an open file, got {type(path).__name__}; pass its name"
        )
    return Path(path)
