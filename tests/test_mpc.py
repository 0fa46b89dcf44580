"""The planning agent: known answers in a linear world, Stable-Baselines3's contract, files and mistakes."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from jepa_rl.agents import CEM, ICEM, MPPI, BasePlanner, CategoricalCEM, GradientPlanner, MPCAgent
from jepa_rl.agents.evaluation import play_episodes
from jepa_rl.costs import ActionPenalty, GoalCost
from jepa_rl.dynamics import HeldActions, MLPDynamics
from jepa_rl.envs import GoalObservation, PixelObservation, TwoRoomsEnv, world_spec
from jepa_rl.testing import DynamicsContract
from jepa_rl.types import ActionSpec, Plan, WorldSpec
from jepa_rl.world_model import WorldModel, WorldModelConfig

STEP = 8  # grey levels that one unit of model action moves the point in one environment step


class PointEnv(gym.Env):
    """A point whose two coordinates are the grey levels of its two channels; the goal is at 128, 128."""

    observation_space = gym.spaces.Box(0, 255, (2, 4, 6), np.uint8)
    action_space = gym.spaces.Box(-3.0, 3.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(20, 235, 2)
        return self._picture(self.position), {"goal": self._picture(np.array([128, 128]))}

    def step(self, action):
        self.position = np.clip(self.position + STEP * np.asarray(action) / 3.0, 0, 255)
        reached = bool(np.abs(self.position - 128).max() < 6)
        info = {"goal": self._picture(np.array([128, 128]))}
        return self._picture(self.position), float(reached), reached, False, info

    def _picture(self, position):
        return np.broadcast_to(np.rint(position)[:, None, None], (2, 4, 6)).astype(np.uint8)


class PointModel:
    """Its exact world model: latents are grey levels / 128, a user's own class without a base."""

    def __init__(self, block=1):
        self.spec = WorldSpec((2, 4, 6), 1, ActionSpec("continuous", 2, (-3.0, -3.0), (3.0, 3.0)), block)
        self.latent_dim, self.action_dim = 2, self.spec.action_dim

    def encode(self, pixels):
        return pixels.float().mean((2, 3)) / 128

    def rollout(self, z, actions, *, futures=1, generator=None):
        moves = actions.unflatten(-1, (-1, 2)).sum(2) * STEP / 128
        path = z[:, None] + torch.cat([torch.zeros_like(moves[:, :1]), moves.cumsum(1)], 1)
        return path.unsqueeze(1)


@pytest.mark.parametrize("keep", [None, 0.5])
def test_episodes_played_side_by_side_are_those_played_alone(keep):
    """Plans, their age and the futures kept of them stay with the episode when others beside it end."""
    model, asked = NoisyPoint(block=2), []
    agent = MPCAgent(
        model, CEM(4, samples=32, elites=4, iterations=2, futures=4), replan_every=5, keep=keep, seed=1
    )
    encode = model.encode
    model.encode = lambda pixels: asked.append(len(pixels)) or encode(pixels)
    together = play_episodes(agent, point_env, [3, 4, 5, 6])
    assert len(set(together.lengths.tolist())) > 1
    assert asked[0] == 8 and asked[-1] < 8  # pictures and goals
    for i, seed in enumerate([3, 4, 5, 6]):
        alone = play_episodes(agent, point_env, [seed])
        assert (alone.lengths[0], alone.returns[0]) == (together.lengths[i], together.returns[i])


def test_an_agent_with_a_goal_for_each_environment_is_asked_for_all():
    agent = MPCAgent(PointModel(), SMALL)
    agent.set_goal(np.full((2, 2, 4, 6), 128, np.uint8))
    played = play_episodes(agent, lambda: gym.wrappers.TimeLimit(PointEnv(), 40), [3, 4])
    assert played.lengths[0] != played.lengths[1] and played.returns.tolist() == [1, 1]


class NoisyPoint(PointModel):
    """Futures that differ: the same path, shifted a little."""

    def rollout(self, z, actions, *, futures=1, generator=None):
        path = super().rollout(z, actions)
        shift = torch.linspace(-0.05, 0.05, futures).view(1, -1, 1, 1) * torch.arange(path.shape[2]).view(
            1, 1, -1, 1
        )
        return path + shift


class Remember(BasePlanner):
    """A planner that plans a ramp 0, 0.01, 0.02, ... once, and then whatever its warm start says."""

    def __init__(self, horizon):
        self.horizon = horizon

    def plan(self, dynamics, cost, z, warm_start=None, generator=None):
        shape = (len(z), self.horizon, dynamics.action_dim)
        ramp = torch.arange(self.horizon * dynamics.action_dim).view(shape[1:]).expand(shape) / 100
        actions = torch.where((warm_start == 0).all(), ramp, warm_start)
        return Plan(actions, torch.zeros(len(z)), None, None, dynamics.rollout(z, actions))


def point_env():
    return GoalObservation(gym.wrappers.TimeLimit(PointEnv(), 40))


def two_rooms(**kwargs):
    return GoalObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=9, **kwargs))


def tiny_model(env, block=2, **options) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(world_spec(env, block), latent_dim=8, **options)).eval()


@pytest.fixture(scope="module")
def rooms_model() -> WorldModel:
    return tiny_model(two_rooms())


SMALL = CEM(4, samples=32, elites=4, iterations=2)


class TestHeldActions(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return HeldActions(MLPDynamics(latent_dim=5, action_dim=6).eval(), block=3)


def test_held_actions_are_the_same_action_block_times():
    model = PointModel(block=3)
    z, actions = torch.zeros(1, 2), torch.tensor([[[0.5, -1.0], [0.0, 0.25]]])
    path = HeldActions(model, 3).rollout(z, actions)[0, 0]
    expected = torch.tensor([[0.0, 0.0], [1.5, -3.0], [1.5, -2.25]]) * STEP / 128
    torch.testing.assert_close(path, expected)


@pytest.mark.parametrize("block", [0, 4])
def test_held_actions_need_a_block_that_divides_the_action(block):
    with pytest.raises(ValueError, match="width 6 cannot be split"):
        HeldActions(MLPDynamics(5, 6), block)


def test_held_actions_say_what_width_they_want():
    with pytest.raises(ValueError, match=r"2 wide .*got 6"):
        HeldActions(PointModel(3), 3).rollout(torch.zeros(1, 2), torch.zeros(1, 2, 6))


@pytest.mark.parametrize(
    "planner",
    [
        CEM(4, samples=128, elites=12),
        ICEM(4, samples=128, elites=12),
        MPPI(4, samples=128, elites=32),
        GradientPlanner(4),
    ],
    ids=lambda planner: type(planner).__name__,
)
@pytest.mark.parametrize(("block", "hold"), [(1, False), (2, False), (2, True)])
def test_reaches_the_goal_in_a_world_it_knows(planner, block, hold):
    """From at most 107 levels away at 8 a step: 14 steps suffice."""
    agent = MPCAgent(PointModel(block), planner, hold=hold)
    venv = make_vec_env(point_env, 3, seed=0)
    returns, lengths = evaluate_policy(agent, venv, 6, return_episode_rewards=True)
    assert returns == [1.0] * 6 and max(lengths) <= 16


def test_actions_come_in_the_environments_units():
    """Far to the left of the goal the best first action is full speed: 3, not the model's 1."""
    agent = MPCAgent(PointModel(), CEM(3, samples=256, elites=16, iterations=8))
    pixels = np.broadcast_to(np.uint8([[[0]], [[128]]]), (2, 4, 6))
    action, _ = agent.predict({"pixels": pixels, "goal": PointEnv()._picture(np.array([128, 128]))})
    assert action.dtype == np.float32 and action.shape == (2,)
    np.testing.assert_allclose(action, [3.0, 0.0], atol=0.5)


@settings(max_examples=30, deadline=None)
@given(block=st.integers(1, 3), horizon=st.integers(1, 4), data=st.data())
def test_the_warm_start_is_the_old_plan_moved_on(block, horizon, data):
    """A planner that keeps its warm start plays one plan to its end and repeats its last action."""
    steps = horizon * block
    agent = MPCAgent(PointModel(block), Remember(horizon), replan_every=data.draw(st.integers(1, steps)))
    agent.set_goal(np.zeros((2, 4, 6), np.uint8))
    state, played = None, []
    for _ in range(steps + 3):
        action, state = agent.predict(np.zeros((2, 4, 6), np.uint8), state)
        played.append(action / 3)
    ramp = np.arange(2 * steps).reshape(steps, 2) / 100
    np.testing.assert_allclose(played, np.concatenate([ramp, ramp[[-1] * 3]]), atol=1e-6)


def test_a_held_plan_moves_on_by_whole_blocks():
    agent = MPCAgent(PointModel(block=3), Remember(2), hold=True)
    agent.set_goal(np.zeros((2, 4, 6), np.uint8))
    state, played = None, []
    for _ in range(9):
        action, state = agent.predict(np.zeros((2, 4, 6), np.uint8), state)
        played.append(action[0] / 3)
    np.testing.assert_allclose(played, [0.0] * 3 + [0.02] * 6, atol=1e-6)


@pytest.mark.parametrize(("replan_every", "searches"), [(None, [0, 2, 4, 6]), (1, range(8)), (3, [0, 3, 6])])
def test_plans_only_when_the_plan_is_used_up(replan_every, searches):
    agent = MPCAgent(PointModel(block=2), SMALL, replan_every=replan_every)
    env = point_env()
    observation, _ = env.reset(seed=0)
    state, seen, last = None, [], None
    for step in range(8):
        _, state = agent.predict(observation, state)
        if agent.last_plan is not last:
            seen.append(step)
            last = agent.last_plan
    assert seen == list(searches)
    assert last.branches.shape == (1, 1, 5, 2)


class CoinModel(PointModel):
    """A coin falls in the first step and moves the first coordinate up or down; actions move the second."""

    def rollout(self, z, actions, *, futures=1, generator=None):
        path = super().rollout(z, actions).repeat(1, futures, 1, 1)
        lands = 0.2 * torch.rand(futures, generator=generator).sub(0.5).sign()
        lands += 0.02 * torch.randn(futures, generator=generator)
        path[:, :, 1:, 0] = path[:, :, :1, 0] + lands[:, None]
        return path


@pytest.mark.parametrize(
    ("fell", "keep", "searches"),
    [
        (0.2, 0.5, [0, 4]),  # as good as the plan hoped for: it stands
        (-0.2, 0.5, [0, 1, 2, 3, 4]),  # the costly half happened
        (0.9, 0.5, [0, 1, 2, 3, 4]),  # no future led there
        (-0.2, None, [0, 4]),  # it never looks
    ],
)
def test_futures_that_did_not_happen_are_discarded(fell, keep, searches):
    planner = CEM(5, samples=8, elites=2, iterations=1, futures=16)
    wants_up = lambda latents, actions: -latents[..., 1:, 0].sum(-1)  # noqa: E731
    agent = MPCAgent(CoinModel(), planner, cost=lambda _: wants_up, replan_every=4, keep=keep)
    before, after = (np.full((2, 4, 6), level, np.uint8) for level in (128, round(128 * (1 + fell))))
    after[1] = 128
    action, state = agent.predict(before)
    made, last = [0], agent.last_plan
    for step in range(1, 5):
        after[1] += np.rint(STEP * action[1] / 3).astype(np.uint8)
        kept = [np.copy(part) for part in state.futures] if keep else None
        old = state
        action, state = agent.predict(after, state)
        if keep:  # a state handed out is never written to
            for part, copy in zip(old.futures, kept, strict=True):
                np.testing.assert_array_equal(part, copy)
        if agent.last_plan is not last:
            made.append(step)
            last = agent.last_plan
    assert made == searches


@pytest.mark.parametrize("keep", [None, 0.5])
def test_a_batch_acts_as_each_environment_alone(keep):
    """Any episode starts; plans of rows that begin, are used up or are refuted are made anew and no others."""
    rng = np.random.default_rng(0)
    planner = CEM(4, samples=32, elites=4, iterations=2, futures=8 if keep else 1)
    model = CoinModel(block=2) if keep else PointModel(block=2)
    agent = MPCAgent(model, planner, replan_every=3, keep=keep, seed=5)
    pixels = rng.integers(0, 256, (10, 3, 2, 4, 6), dtype=np.uint8)
    goals = rng.integers(0, 256, (10, 3, 2, 4, 6), dtype=np.uint8)
    starts = rng.random((10, 3)) < 0.3
    starts[0] = True

    def play(rows):
        state, actions = None, []
        for p, g, start in zip(pixels[:, rows], goals[:, rows], starts[:, rows], strict=True):
            action, state = agent.predict({"pixels": p, "goal": g}, state, start)
            actions.append(action)
        return np.stack(actions, 1)

    together = play([0, 1, 2])
    for row in range(3):
        np.testing.assert_allclose(together[row : row + 1], play([row]), atol=1e-5)
    np.testing.assert_array_equal(together, play([0, 1, 2]))
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_an_episode_start_drops_the_old_plan_and_leaves_the_state_given_alone():
    agent = MPCAgent(PointModel(), Remember(4), replan_every=2)
    agent.set_goal(np.zeros((2, 4, 6), np.uint8))
    pixels = np.zeros((2, 2, 4, 6), np.uint8)
    _, state = agent.predict(pixels)
    before = [np.copy(part) for part in state]
    action, after = agent.predict(pixels, state, np.array([True, False]))
    np.testing.assert_allclose(action[:, 0] / 3, [0.0, 0.02], atol=1e-6)
    assert after.position.tolist() == [1, 2] and agent.last_rows.tolist() == [0]
    for part, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(part, old)


class ProbeCost:
    """A cost that ends in a layer: half precision computes it in half precision."""

    def __init__(self):
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 1)

    def __call__(self, latents, actions):
        return self.layer(latents[:, :, -1])[..., 0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_futures_of_a_flow_are_looked_at_in_either_precision(rooms_model, tmp_path, precision):
    model, cost = rooms_model.with_dynamics("flow", width=16, heads=2).eval(), ProbeCost()
    planner = CEM(3, samples=8, elites=2, iterations=1, futures=4)
    agent = MPCAgent(model, planner, cost=lambda _: cost, replan_every=4, keep=0.5, precision=precision)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 64, 64), dtype=np.uint8)
    state, encoded = None, []
    model.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    for step, seen in enumerate(pixels):
        before = agent.last_plan
        _, state = agent.predict(seen, state, np.array([step == 0, step == 1]))
        if step == 3:  # row 0 looks and row 1, half way through a block, does not
            assert encoded[0] <= 1
        encoded.clear()
        assert state.futures.errors.dtype == torch.float32 and state.futures.paths.shape == (2, 4, 4, 8)
        assert (agent.last_plan is before) or np.isin(agent.last_rows, [0, 1]).all()
    agent.save(tmp_path / "agent")
    assert MPCAgent.load(tmp_path / "agent", cost=lambda _: cost).keep == 0.5


def test_seeds_make_equal_runs_and_searches_differ_from_call_to_call():
    pixels, goal = np.zeros((2, 4, 6), np.uint8), np.full((2, 4, 6), 9, np.uint8)
    first, second, other = (MPCAgent(PointModel(), CEM(2, 8, 2, 1), seed=s) for s in (3, 3, 4))
    runs = []
    for agent in (first, second, other):
        state, actions = None, []
        for deterministic in (False, True, False):
            start = np.array([True])
            action, state = agent.predict({"pixels": pixels, "goal": goal}, state, start, deterministic)
            actions.append(action)
        runs.append(np.stack(actions))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    assert (runs[0][0] != runs[0][1]).any()


def test_costs_are_made_of_goals_or_stand_alone():
    """With the cost of actions alone no goal is asked for, and standing still is best."""
    agent = MPCAgent(PointModel(), CEM(2, 200, 20, 10, min_std=0.0), cost=lambda _: ActionPenalty())
    action, _ = agent.predict(np.zeros((2, 4, 6), np.uint8))
    np.testing.assert_allclose(action, 0.0, atol=0.1)
    agent = MPCAgent(PointModel(), SMALL, cost=partial(GoalCost, reduce="last", distance="mse"))
    agent.set_goal(np.zeros((2, 4, 6), np.uint8))
    assert agent.predict(np.zeros((3, 2, 4, 6), np.uint8))[0].shape == (3, 2)


# -- real environments and Stable-Baselines3 -----------------------------------------------------------


def test_goal_observation_is_a_clean_environment():
    env = two_rooms()
    check_env(env, skip_render_check=True)
    sb3_check_env(env)
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation["goal"], info["goal"])
    assert world_spec(env) == world_spec(gym.make("jepa_rl/TwoRooms-v0"))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(again.reset(seed=0)[0]["goal"], observation["goal"])


def test_a_goal_of_one_frame_is_repeated_to_the_stack():
    env = GoalObservation(PixelObservation(TwoRoomsEnv(), size=64, frames=3))
    observation, info = env.reset(seed=0)
    assert observation["goal"].shape == observation["pixels"].shape == (6, 64, 64)
    for frame in observation["goal"].reshape(3, 2, 64, 64):
        np.testing.assert_array_equal(frame, info["goal"])
    check_env(env, skip_render_check=True)


def test_goal_observation_names_what_is_missing():
    env = GoalObservation(PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), frames=1))
    with pytest.raises(ValueError, match="info must hold 'goal'"):
        env.reset(seed=0)
    with pytest.raises(ValueError, match=r"uint8 of shape \(2, 32, 32\).* got uint8 \(2, 64, 64\)"):
        GoalObservation(PixelObservation(TwoRoomsEnv(), size=32, frames=1)).reset(seed=0)
    with pytest.raises(ValueError, match="already has a goal"):
        GoalObservation(two_rooms())
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        GoalObservation(gym.make("CartPole-v1"))


@pytest.mark.parametrize("hold", [False, True])
def test_evaluate_policy_on_two_rooms(rooms_model, hold):
    venv = make_vec_env(two_rooms, 3, seed=0)
    agent = MPCAgent(rooms_model, SMALL, hold=hold)
    _, lengths = evaluate_policy(agent, venv, 4, return_episode_rewards=True)
    assert len(lengths) == 4 and max(lengths) <= 9
    observation = venv.reset()
    action, state = agent.predict(observation)
    again, _ = agent.predict(observation)
    assert action.shape == (3, 2) and action.dtype == np.float32 and venv.action_space.contains(action[0])
    np.testing.assert_array_equal(action, again)
    assert state.plan.shape == (3, 8, 2)


def test_the_model_in_training_stays_in_training(rooms_model):
    model = tiny_model(two_rooms())
    model.train()
    observation, _ = two_rooms().reset(seed=0)
    action, _ = MPCAgent(model, SMALL).predict(observation)
    assert model.training and all(part.training for part in model.modules())
    np.testing.assert_array_equal(action, MPCAgent(rooms_model, SMALL).predict(observation)[0])


def test_discrete_actions_on_cartpole(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def make():
        return PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), size=64, frames=2)

    env = make()
    for block in (1, 2):
        model = tiny_model(env, block)
        agent = MPCAgent(model, CategoricalCEM(3, samples=16, elites=4, iterations=2, choices=2))
        agent.set_goal(env.reset(seed=3)[0])
        action, _ = agent.predict(env.reset(seed=0)[0])
        assert env.action_space.contains(action)
        _, lengths = evaluate_policy(agent, make_vec_env(make, 2, seed=0), 2, return_episode_rewards=True)
        assert min(lengths) >= 5
    with pytest.raises(ValueError, match="choices=2"):
        MPCAgent(model, CategoricalCEM(3, samples=16, elites=4))
    with pytest.raises(ValueError, match="CEM does not fit discrete actions; use CategoricalCEM"):
        MPCAgent(model, SMALL)


def test_callbacks_evaluate_and_save_the_agent(rooms_model, tmp_path):
    venv = make_vec_env(two_rooms, 2, seed=0)
    agent = MPCAgent(rooms_model, SMALL, cost=partial(GoalCost, reduce="last"), hold=True, seed=7)
    agent.set_env(venv)
    evaluate = EvalCallback(
        make_vec_env(two_rooms, 2, seed=1), n_eval_episodes=2, eval_freq=1, verbose=0,
        log_path=str(tmp_path), best_model_save_path=str(tmp_path),
    )  # fmt: skip
    callback = CallbackList([evaluate, CheckpointCallback(1, str(tmp_path), "agent")])
    callback.init_callback(agent)
    callback.on_training_start({}, {})
    agent.num_timesteps = 10
    assert callback.on_step()
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [10]
    observation = venv.reset()
    expected, _ = agent.predict(observation)
    for name in ("best_model", "agent_10_steps.zip"):
        loaded = MPCAgent.load(tmp_path / name)
        assert (loaded.planner, loaded.hold, loaded.replan_every) == (SMALL, True, 2)
        np.testing.assert_array_equal(loaded.predict(observation)[0], expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".npz"}


def test_half_precision_plans_alike_and_is_saved(rooms_model, tmp_path):
    env = two_rooms()
    observation, _ = env.reset(seed=0)
    exact = MPCAgent(rooms_model, SMALL, hold=True)
    half = MPCAgent(rooms_model, SMALL, hold=True, precision="bfloat16")
    exact.predict(observation)
    half.predict(observation)
    assert not torch.equal(half.last_plan.cost.float(), exact.last_plan.cost)
    torch.testing.assert_close(half.last_plan.cost.float(), exact.last_plan.cost, rtol=0.1, atol=0.1)
    half.save(tmp_path / "agent")
    assert MPCAgent.load(tmp_path / "agent").precision == "bfloat16"


def test_what_cannot_be_written_is_asked_for_again(rooms_model, tmp_path):
    MPCAgent(rooms_model, Remember(4), cost=lambda goal: GoalCost(goal)).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"pass it: load\(path, planner="):
        MPCAgent.load(tmp_path / "agent", cost=GoalCost)
    with pytest.raises(ValueError, match=r"pass it: load\(path, cost="):
        MPCAgent.load(tmp_path / "agent", planner=SMALL)
    assert MPCAgent.load(tmp_path / "agent", planner=SMALL, cost=GoalCost).planner is SMALL
    with pytest.raises(TypeError, match="PointModel"):
        MPCAgent(PointModel(), SMALL).save(tmp_path / "point")
    with pytest.raises(FileNotFoundError):
        MPCAgent.load(tmp_path / "nowhere")
    rooms_model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="world_model"):
        MPCAgent.load(tmp_path / "model.safetensors")
    assert isinstance(MPCAgent(tmp_path / "model.safetensors", SMALL).model, WorldModel)


# -- mistakes ------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    pixels = np.zeros((2, 4, 6), np.uint8)
    agent = MPCAgent(PointModel(), SMALL)
    with pytest.raises(ValueError, match=r"the cost needs a goal.*set_goal"):
        agent.predict(pixels)
    agent.set_goal(pixels)
    for wrong in (pixels[:1], pixels.astype(np.float32), pixels[None][:0], np.zeros((1, 4, 6, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"pixels must be uint8 of shape \(2, 4, 6\)"):
            agent.predict(wrong)
    with pytest.raises(ValueError, match="goal must be uint8"):
        agent.set_goal(pixels[0])
    with pytest.raises(ValueError, match="key 'pixels'"):
        agent.predict({"image": pixels})
    with pytest.raises(ValueError, match="expected 1 goal or 3"):
        agent.predict({"pixels": np.stack([pixels] * 3), "goal": np.stack([pixels] * 2)})
    _, state = agent.predict(pixels)
    with pytest.raises(ValueError, match=r"plans of shape \(2, 4, 2\), got \(1, 4, 2\)"):
        agent.predict(np.stack([pixels] * 2), state)


def test_settings_that_do_not_fit_are_named(rooms_model):
    for replan_every in (0, 9):
        with pytest.raises(ValueError, match=r"replan_every must lie in \[1, 8\]"):
            MPCAgent(rooms_model, SMALL, replan_every=replan_every)
    with pytest.raises(ValueError, match="CategoricalCEM does not fit continuous actions"):
        MPCAgent(rooms_model, CategoricalCEM(4))
    with pytest.raises(TypeError, match="without encode, rollout, spec"):
        MPCAgent(object(), SMALL)
    several = WorldSpec(None, 1, rooms_model.spec.action, parts=(("arm", (3, 32, 32)), ("joints", (7,))))
    with pytest.raises(ValueError, match="looks at one picture"):
        MPCAgent(WorldModel(WorldModelConfig(several, latent_dim=8)), SMALL)
    with pytest.raises(
        TypeError, match=r"planner must be an object with horizon, actions, .*which lacks horizon"
    ):
        MPCAgent(rooms_model, CEM)
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16'"):
        MPCAgent(rooms_model, SMALL, precision="half")
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\]"):
        MPCAgent(rooms_model, SMALL, keep=0.0)
    with pytest.raises(ValueError, match="the planner draws one"):
        MPCAgent(rooms_model, SMALL, keep=0.5)
    several = CEM(4, samples=8, elites=2, iterations=1, futures=4)
    with pytest.raises(
        ValueError, match="plans anew by then; follow plans for longer, such as replan_every=6"
    ):
        MPCAgent(rooms_model, several, keep=0.5)
    pixels, cost = np.zeros((2, 4, 6), np.uint8), lambda _: lambda latents, __: latents[:, :, -1, 0]
    with pytest.raises(ValueError, match="the dynamics drew one"):
        MPCAgent(PointModel(), several, cost=cost, replan_every=2, keep=0.5).predict(pixels)
    looks, other = (
        MPCAgent(CoinModel(), p, cost=cost, replan_every=2, keep=0.5)
        for p in (several, CEM(4, samples=8, elites=2, iterations=1, futures=3))
    )
    never = MPCAgent(CoinModel(), several, cost=cost, replan_every=2)
    _, state = looks.predict(pixels)
    never.predict(pixels, state)
    for agent, from_elsewhere in ((other, state), (looks, never.predict(pixels)[1])):
        with pytest.raises(ValueError, match="state must hold futures of shape"):
            agent.predict(pixels, from_elsewhere)
    with pytest.raises(FileNotFoundError):
        MPCAgent("nowhere.safetensors", SMALL)


def test_a_planner_of_the_users_own_says_what_it_searches(rooms_model):
    class Choosing(Remember):
        actions = "discrete"

        def check(self, spec, dynamics):
            super().check(spec, dynamics)
            if dynamics.action_dim != 2:
                raise ValueError(f"I choose among 2, not {dynamics.action_dim}")

    with pytest.raises(ValueError, match="Choosing does not fit continuous actions; use CEM"):
        MPCAgent(rooms_model, Choosing(4))
    for size in (2, 3):
        spec = WorldSpec((3, 32, 32), 1, ActionSpec("discrete", size))
        model = WorldModel(WorldModelConfig(spec, latent_dim=8))
        if size == 2:
            assert MPCAgent(model, Choosing(4)).planner.futures == 1
        else:
            with pytest.raises(ValueError, match="I choose among 2, not 3"):
                MPCAgent(model, Choosing(4))


def test_several_choices_side_by_side_fit_and_come_back_from_disk(tmp_path):
    """MultiDiscrete([2, 3]): the tuple of choices survives the file, in which it is a list."""
    action = ActionSpec("discrete", 5, choices=(2, 3), starts=(0, 0))
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(WorldSpec((3, 32, 32), 1, action), latent_dim=8))
    with pytest.raises(ValueError, match=r"chooses among 5, .* takes \(2, 3\) actions; .*choices=\(2, 3\)"):
        MPCAgent(model, CategoricalCEM(3))
    planner = CategoricalCEM(3, samples=16, elites=4, iterations=2, choices=(2, 3))
    agent = MPCAgent(model, planner, cost=lambda _: ActionPenalty())
    pixels = np.zeros((3, 32, 32), np.uint8)
    action, _ = agent.predict(pixels)
    assert action.shape == (2,) and (action < [2, 3]).all()
    agent.save(tmp_path / "agent")
    loaded = MPCAgent.load(tmp_path / "agent", cost=lambda _: ActionPenalty())
    assert loaded.planner == planner
    np.testing.assert_array_equal(loaded.predict(pixels)[0], action)


def test_another_environment_is_refused(rooms_model):
    agent = MPCAgent(rooms_model, SMALL)
    with pytest.raises(ValueError, match="the environment shows"):
        agent.set_env(make_vec_env(point_env, 1))
    slower = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
    with pytest.raises(ValueError, match="the model is driven by"):
        agent.set_env(make_vec_env(lambda: gym.wrappers.TransformAction(two_rooms(), lambda a: a, slower), 1))


def test_nan_in_the_model_is_named():
    model = tiny_model(two_rooms())
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(torch.nan)
    observation, _ = two_rooms().reset(seed=0)
    with pytest.raises(ValueError, match=r"NaN or infinite|finite values"):
        MPCAgent(model, SMALL).predict(observation)
