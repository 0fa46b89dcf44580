"""Evaluation, the same for every agent: fixed seeds, deterministic actions, all episodes in one batch."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from jepa_rl.acting import BatchActor, scalar_reward
from jepa_rl.files import write_atomic
from jepa_rl.opengl import keep_viewers_apart
from jepa_rl.progress import SOON, Progress

FILMED = 300  # decisions in a video: all of its pictures are in memory at once


class Played(NamedTuple):
    """Complete episodes.

    Attributes:
        returns: undiscounted return of each episode.
        lengths: number of decisions in each episode.
        pictures: ``render()`` after each of the first decisions of the first episode, (y, x, 3) uint8; empty unless
            requested.
    """

    returns: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    pictures: list[np.ndarray]


def play_episodes(
    agent: Any, make_env: Callable[[], gym.Env], seeds: list[int], pictures: bool = False
) -> Played:
    """Plays one episode for each seed, all in parallel; the agent acts for all running episodes in one batch.

    Args:
        agent: anything with Stable-Baselines3's ``predict``. If it has a ``VecNormalize``, that normalises its
            observations; returns are the environments' own. Finished episodes leave the batch if the agent has
            ``select_state`` (``jepa_rl.acting.SelectiveAgent``; the agents of this library do); otherwise they stay in
            it and their actions are ignored.
        make_env: called once for each seed; the environments are closed at the end.
        seeds: one for the reset of each episode.
        pictures: whether to keep ``render()`` after each of the first ``FILMED`` decisions of the first episode.

    Returns:
        Returns and lengths in the order of ``seeds``, and the pictures.

    Raises:
        ValueError: if a reward is not one number.
    """
    envs = [make_env() for _ in seeds]
    keep_viewers_apart()
    try:
        seen = [env.reset(seed=int(seed))[0] for env, seed in zip(envs, seeds, strict=True)]
        returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), np.int64)
        running, starts = np.ones(len(envs), bool), np.ones(len(envs), bool)
        act = BatchActor(agent, deterministic=True)
        shown: list[np.ndarray] = []
        with Progress("Evaluating", None, "decision", delay=SOON) as bar:
            while running.any():
                actions = act(_stack(seen), starts, running)
                starts = np.zeros(len(envs), bool)
                for i in np.flatnonzero(running):
                    seen[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
                    returns[i] += scalar_reward(reward)
                    lengths[i] += 1
                    running[i] = not (terminated or truncated)
                    if pictures and i == 0 and len(shown) < FILMED:
                        shown.append(np.array(envs[0].render()))  # a copy: renderers may reuse their buffer
                bar.note(f"{np.count_nonzero(~running)} of {len(envs)} episodes")
                bar.update()
        return Played(returns, lengths, shown)
    finally:
        for env in envs:
            env.close()


class EvaluationCallback(BaseCallback):
    """Plays the same episodes at regular intervals; writes ``eval/*`` to TensorBoard, a JSON file and a video.

    The first evaluation happens before training. The JSON file is rewritten after each evaluation. When an interrupted
    run is resumed, entries up to the step where it resumes are kept; a new run (``num_timesteps`` 0) replaces the file.

    Args:
        make_env: returns a new environment, made as for training; it needs ``render()`` for videos.
        every: environment steps (the model's ``num_timesteps``) between evaluations.
        episodes: number of episodes in each evaluation.
        seed: of the first episode; episode i has ``seed + i``.
        path: the JSON file, ``[{"step", "returns", "lengths", "seconds"}, ...]``; None: only in ``results``.
            ``seconds`` counts from the start of training, without the time that a killed run lost after its last
            evaluation.
        video: whether the first ``FILMED`` decisions of the first episode go to TensorBoard as an animated picture.

    Raises:
        ValueError: if ``every`` or ``episodes`` is below 1.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        every: int = 10_000,
        episodes: int = 10,
        seed: int = 1_000_000,
        path: str | Path | None = None,
        video: bool = False,
    ) -> None:
        super().__init__()
        if every < 1 or episodes < 1:
            raise ValueError(
                f"every and episodes must be at least 1, got every={every} and episodes={episodes}"
            )
        self.make_env, self.every, self.episodes = make_env, every, episodes
        self.seed, self.video = seed, video
        self.path = None if path is None else Path(path)
        self.results: list[dict[str, Any]] = []
        self._next, self._spent, self._began, self._read = 0, 0.0, 0.0, False

    def _on_training_start(self) -> None:
        self._began, self._read = time.perf_counter(), False

    def _on_rollout_start(self) -> None:
        if not self._read:  # not in _on_training_start, where another callback may restore a run
            self._read_earlier()
            self._evaluate_if_due()

    def _on_training_end(self) -> None:
        if not self._read:  # there were no steps left to train
            self._read_earlier()

    def _on_step(self) -> bool:
        self._evaluate_if_due()
        return True

    def _read_earlier(self) -> None:
        self._read, done = True, self.results
        if self.model.num_timesteps == 0:
            done = []  # a new run: existing entries belong to another one
        elif self.path is not None:
            done = json.loads(self.path.read_text()) if self.path.exists() else []
        self.results = [entry for entry in done if entry["step"] <= self.model.num_timesteps]
        self._spent = self.results[-1]["seconds"] if self.results else 0.0
        self._next = self._after(self.results[-1]["step"]) if self.results else 0

    def _after(self, step: int) -> int:
        """The next multiple of ``every``."""
        return (step // self.every + 1) * self.every

    def _evaluate_if_due(self) -> None:
        step = self.model.num_timesteps
        if step < self._next:
            return
        self._next = self._after(step)
        seeds = [self.seed + i for i in range(self.episodes)]
        played = play_episodes(self.model, self.make_env, seeds, self.video)
        self.logger.record("eval/mean_reward", float(played.returns.mean()))
        self.logger.record("eval/std_reward", float(played.returns.std()))
        self.logger.record("eval/mean_ep_length", float(played.lengths.mean()))
        self.logger.dump(step)
        if played.pictures:
            self._show(played.pictures, step)
        seconds = self._spent + time.perf_counter() - self._began
        self.results.append(
            {
                "step": step,
                "returns": played.returns.tolist(),
                "lengths": played.lengths.tolist(),
                "seconds": seconds,
            }
        )
        if self.path is not None:
            write_atomic(self.path, json.dumps(self.results).encode())

    def _show(self, pictures: list[np.ndarray], step: int) -> None:
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                add_animation(output.writer, "eval/episode", pictures, step)


def add_animation(
    writer: SummaryWriter, tag: str, pictures: list[np.ndarray], step: int = 0, milliseconds: int = 50
) -> None:
    """Writes an animated GIF to TensorBoard's images; ``SummaryWriter.add_video`` would need another package.

    Args:
        writer: of the TensorBoard events.
        tag: name of the animation.
        pictures: uint8 "y x 3", all of one size; resized to a width of 160 pixels.
        step: environment steps, the x-axis.
        milliseconds: display time of each picture.

    Raises:
        ValueError: if there are no pictures.
    """
    if not pictures:
        raise ValueError("an animation needs at least one picture, got none")
    frames = [Image.fromarray(p).resize((160, round(160 * p.shape[0] / p.shape[1]))) for p in pictures]
    file = io.BytesIO()
    frames[0].save(file, "gif", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    picture = Summary.Image(
        encoded_image_string=file.getvalue(), width=160, height=frames[0].height, colorspace=3
    )
    value = Summary.Value(tag=tag, image=picture)
    writer._get_file_writer().add_summary(Summary(value=[value]), step)


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    return np.stack(observations)
