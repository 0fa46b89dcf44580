"""Agents whose encoder also learns a JEPA objective: Stable-Baselines3's contract, and what moves what."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from dots import SIZE, Dot
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.baselines import SaveAtEvaluation, load_saved
from jepa_rl.agents.sb3.joint import (
    JEPADQN,
    JEPAPPO,
    JEPASAC,
    JEPATD3,
    JEPAReplayBuffer,
    JEPARolloutBuffer,
    jepa_policy_kwargs,
)
from jepa_rl.envs import wrap
from jepa_rl.objectives.consistency import Consistency
from jepa_rl.spaces import observed_spec
from jepa_rl.training.joint import JointEncoder, ReturnScale, Seen
from jepa_rl.types import Batch, ControlBatch
from jepa_rl.world_model import WorldModel, WorldModelConfig

ALGORITHMS = {"sac": JEPASAC, "td3": JEPATD3, "dqn": JEPADQN, "ppo": JEPAPPO}


def dot(name, **options):
    return Dot(discrete=name == "dqn", **options)


WORLD = {
    "encoder_options": {"widths": (8, 16)},
    "dynamics_options": {"width": 32, "depth": 1},
    "objective_options": {"shift": 0},
}


def tiny(name, env=None, world=WORLD, joint=None, **settings):
    """A small agent."""
    options = {"latent_dim": 8, "world": world, "net_arch": [32]} | (joint or {})
    own = {"n_steps": 32, "batch_size": 16, "n_epochs": 2} if name == "ppo" else {
        "batch_size": 16, "buffer_size": 2000, "learning_starts": 30,
    }  # fmt: skip
    return ALGORITHMS[name](
        "CnnPolicy",
        env or dot(name),
        policy_kwargs=jepa_policy_kwargs(**options),
        **own | {"seed": 0} | settings,
    )


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(before, module):
    return {name for name, value in weights(module).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [
        # A falling rate is for more updates than these.
        ("sac", 500, {"learning_starts": 100, "learning_rate": 1e-3}),
        ("td3", 1200, {"learning_starts": 150, "learning_rate": 1e-3}),
        (
            "dqn",
            1200,
            {"train_freq": 1, "gradient_steps": 1, "target_update_interval": 50, "exploration_fraction": 0.4},
        ),
        ("ppo", 2500, {"n_steps": 128, "n_epochs": 8, "batch_size": 32, "learning_rate": 2e-3, "gamma": 0.9}),
    ],
)
def test_learns_from_pixels(name, steps, settings):
    agent = tiny(name, **{"gamma": 0.9} | settings)
    agent.learn(steps)
    found, _ = evaluate_policy(agent, make_vec_env(lambda: dot(name), 20, seed=7), 20, warn=False)
    rng = np.random.default_rng(0)
    env, random = dot(name), []
    for episode in range(20):
        env.reset(seed=episode)
        env.action_space.seed(int(rng.integers(2**31)))
        random.append(sum(env.step(env.action_space.sample())[1] for _ in range(12)))
    assert found > 0.5 * np.mean(random), (found, np.mean(random))  # both are below 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_saved_and_loaded_it_is_the_same_and_goes_on(name, tmp_path):
    agent = tiny(name)
    agent.learn(64 if name == "ppo" else 40)
    agent.save(tmp_path / "agent.zip")
    loaded = type(agent).load(tmp_path / "agent.zip", env=dot(name))
    seen = np.stack([dot(name).reset(seed=s)[0] for s in range(5)])
    np.testing.assert_array_equal(
        agent.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0]
    )
    kept, found = agent.get_parameters(), loaded.get_parameters()
    assert kept.keys() == found.keys() and {"joint", "joint.optimizer"} <= kept.keys()
    for key in kept["joint"]:
        torch.testing.assert_close(kept["joint"][key], found["joint"][key], rtol=0, atol=0)
    assert loaded.joint.optimizer.state_dict()["state"][0]["step"] > 0
    before = parameters(loaded.joint)
    loaded.learn(64 if name == "ppo" else 24, reset_num_timesteps=False)
    assert any(not torch.equal(value, before[key]) for key, value in loaded.joint.named_parameters())
    alone = type(agent).load(tmp_path / "agent.zip")  # to act, without an environment
    np.testing.assert_array_equal(
        alone.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0]
    )


@pytest.mark.parametrize("name", ["sac", "td3", "dqn", "ppo"])
def test_the_agents_loss_moves_the_encoder_and_nothing_else_of_the_world_model(name):
    agent = tiny(name, joint={"weight": 0.0})
    agent.learn(32)
    before = weights(agent.joint.world)
    if name == "ppo":
        agent.learn(32)
    else:
        agent.train(3, 16)
    changed = moved(before, agent.joint.world)
    assert any(key.startswith("encoder.") and key.endswith("weight") for key in changed)
    assert not any(key.startswith("dynamics.") for key in changed)


@pytest.mark.parametrize("name", ["sac", "td3", "dqn", "ppo"])
def test_the_objective_moves_no_weight_of_the_agent(name):
    """In its first update the agent sees the same latents, whatever the objective's weight is."""
    found = []
    for weight in (1e-6, 50.0):
        once = (
            {"n_epochs": 1, "batch_size": 32, "encoder_epochs": 1}
            if name == "ppo"
            else {"learning_starts": 10_000}
        )
        agent = tiny(name, joint={"weight": weight}, **once)
        agent.learn(32)
        if name != "ppo":
            agent.train(1, 16)
        found.append((weights(agent.policy), weights(agent.joint.world)))
    (one, first), (other, second) = found
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_only_the_first_gradient_that_reaches_the_latents_trains_the_encoder():
    env = Dot()
    spec = observed_spec(env.observation_space, env.action_space)
    torch.manual_seed(0)
    world = WorldModel(WorldModelConfig(spec, 8, objective="consistency", **{k: WORLD[k] for k in WORLD}))
    config = jepa_policy_kwargs(latent_dim=8, weight=0.0)["features_extractor_kwargs"]["joint"]
    pixels = torch.randint(0, 255, (6, 3, 1, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(6, 2, 1), torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.bool))
    after = []
    for second in (False, True):
        torch.manual_seed(1)
        encoder = JointEncoder(WorldModel(world.config), config, discount=0.9, seed=0)
        encoder.world.load_state_dict(world.state_dict())
        z = encoder.latents(batch).now
        z.sum().backward()
        if second:
            (100 * z.square().sum()).backward()
        encoder.update()
        after.append(weights(encoder.world))
        assert any(
            not torch.equal(after[-1][key], value) for key, value in weights(world).items() if "weight" in key
        )
    for key in after[0]:
        torch.testing.assert_close(after[0][key], after[1][key], rtol=0, atol=0)


def test_a_share_of_the_agents_gradient_reaches_the_encoder_and_all_of_it_the_layer_it_reads_through():
    """The objective's weight is next to nothing, and no gradient is clipped."""
    env = Dot()
    spec = observed_spec(env.observation_space, env.action_space)
    torch.manual_seed(0)
    world = WorldModel(WorldModelConfig(spec, 8, objective="consistency", **WORLD))
    pixels = torch.randint(0, 255, (6, 3, 1, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(6, 2, 1), torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.bool))
    gradients = {}
    for share in (1.0, 0.25, 0.0):
        kwargs = jepa_policy_kwargs(latent_dim=8, weight=1e-12, agent=share, max_grad_norm=1e9)
        torch.manual_seed(1)
        encoder = JointEncoder(
            WorldModel(world.config), kwargs["features_extractor_kwargs"]["joint"], discount=0.9, seed=0
        )
        encoder.world.load_state_dict(world.state_dict())
        encoder.latents(batch).now.square().sum().backward()
        encoder.update()
        last = encoder.world.encoder.project.weight
        gradients[share] = (last.grad, encoder.reader[0].weight.grad)
    whole, reader = gradients[1.0]
    assert whole.abs().max() > 1e-3 < reader.abs().max()
    for share, (part, same) in gradients.items():
        torch.testing.assert_close(part, share * whole, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(same, reader)


@pytest.mark.parametrize(
    "world",
    [
        {"objective": "dense"},
        {"objective": "change"},
        {"objective": "lewm"},
        {"encoder_options": {"widths": (8, 16), "norm": False}},
    ],
    ids=["dense", "change", "lewm", "no norm"],
)
@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_other_objectives_and_encoders(name, world):
    plain = {
        key: value for key, value in WORLD.items() if "objective" not in world or key != "objective_options"
    }
    agent = tiny(name, world=plain | world)
    before = parameters(agent.joint.world.encoder)
    agent.learn(96 if name == "ppo" else 40)
    changed = [
        key
        for key, value in agent.joint.world.encoder.named_parameters()
        if not torch.equal(value, before[key])
    ]
    assert changed and all(torch.isfinite(value).all() for value in agent.joint.parameters())


def test_one_picture_has_one_latent_now_and_later():
    env = Dot()
    spec = observed_spec(env.observation_space, env.action_space)
    torch.manual_seed(0)
    world = WorldModel(WorldModelConfig(spec, 8, objective="consistency", **WORLD))
    config = jepa_policy_kwargs(latent_dim=8)["features_extractor_kwargs"]["joint"]
    encoder = JointEncoder(world, config, discount=0.9, seed=0)
    pixels = torch.randint(0, 255, (6, 2, 1, SIZE, SIZE), dtype=torch.uint8)
    batch = ControlBatch(
        pixels, torch.zeros(6, 1, 1), torch.zeros(6, 1), torch.zeros(6, 1, dtype=torch.bool), returns=torch.zeros(6, 1),
        discounts=torch.ones(6, 1), ended=torch.zeros(6, dtype=torch.bool), future=pixels[:, 0],
    )  # fmt: skip
    seen = encoder.latents(batch)
    torch.testing.assert_close(seen.now, seen.later)
    assert seen.now.requires_grad and not seen.later.requires_grad
    # Training may compute in bfloat16. The statistics of a batch play no part.
    torch.testing.assert_close(encoder.acting(pixels[:, 0]), seen.now, rtol=0, atol=2e-2)
    torch.testing.assert_close(encoder.acting(pixels[:1, 0]), encoder.acting(pixels[:, 0])[:1])


def test_critics_of_sac_have_dropout_of_the_rate_that_was_asked_for():
    for joint, rate in (({}, 0.01), ({"dropout_rate": 0.2}, 0.2)):
        critic = tiny("sac", joint=joint).critic
        rates = [part.p for part in critic.modules() if isinstance(part, torch.nn.Dropout)]
        assert rates == [rate, rate]  # one hidden layer in each of two


def test_an_objective_that_encodes_in_another_order_is_refused():
    class Backwards(Consistency):
        def unroll(self, world, batch, generator=None):
            world.encode_windows(batch.observations[:, 1:])
            return super().unroll(world, batch, generator)

    env = Dot()
    world = WorldModel(
        WorldModelConfig(
            observed_spec(env.observation_space, env.action_space), 8, objective="consistency", **WORLD
        )
    )
    world.objective = Backwards()
    config = jepa_policy_kwargs(latent_dim=8)["features_extractor_kwargs"]["joint"]
    pixels = torch.randint(0, 255, (6, 3, 1, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(6, 2, 1), torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Backwards.unroll must encode the windows' 6 first states, or"):
        JointEncoder(world, config, discount=0.9, seed=0).latents(batch)


def test_ppos_rewards_are_scaled_once():
    for wrap_rewards in (False, True):
        venv = DummyVecEnv([Dot, Dot])
        venv = VecNormalize(venv, norm_obs=False) if wrap_rewards else venv
        agent = tiny("ppo", env=venv, n_steps=16)
        agent.learn(64)
        assert bool(agent.joint.returns.count) != wrap_rewards
        assert 0.1 < np.abs(agent.rollout_buffer.rewards).max() < 10


def test_a_batch_that_the_agent_does_not_learn_from_moves_no_weight():
    agent = tiny("sac")
    agent.learn(40)
    before = parameters(agent.joint)
    agent.replay_buffer.sample(8)
    agent.joint.update()
    for name, value in agent.joint.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_size_of_rewards_changes_nothing_that_is_learned(name):
    """Rewards a thousand times as large give the same run, bit for bit; so do equal seeds."""
    learned = []
    for size in (1.0, 1024.0):  # a power of 2, so that dividing by the scale is exact
        env = gym.wrappers.TransformReward(dot(name), lambda r, size=size: size * r)
        agent = tiny(name, env=env)
        agent.learn(96 if name == "ppo" else 50)
        assert agent.joint.updates > 0
        learned.append([*agent.joint.world.parameters(), *agent.policy.parameters()])
    for one, other in zip(*learned, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_first_reward_after_long_silence_is_clipped():
    scale = ReturnScale(0.99)
    for _ in range(20_000):
        scale.follow(np.zeros(1), np.zeros(1, bool))
    scale.follow(np.ones(1), np.ones(1, bool))
    assert 1 / scale.value > 100 and scale.scaled(np.ones(1)) == 10.0


def test_an_agent_without_history_takes_the_scale_of_a_loaded_replay(tmp_path):
    agent = tiny("sac", learning_starts=10_000)
    agent.learn(48)  # four whole episodes
    agent.save_replay_buffer(tmp_path / "replay")
    fresh = tiny("sac")
    fresh.load_replay_buffer(tmp_path / "replay")
    assert (
        fresh.joint.returns.value == pytest.approx(agent.joint.returns.value, rel=1e-5)
        and fresh.joint.returns.count == 48
    )


def test_sums_of_rewards_begin_anew_with_every_call_of_learn():
    agent = tiny("sac", learning_starts=10_000)
    agent.learn(7)
    agent.joint.returns._running[:] = 1e6
    agent.learn(7)
    assert agent.joint.returns.value < 10


def test_the_scale_is_the_deviation_of_discounted_sums_and_is_saved(tmp_path):
    scale, rng = ReturnScale(0.5), np.random.default_rng(0)
    rewards, over = rng.normal(size=(50, 3)), rng.random((50, 3)) < 0.2
    running, seen = np.zeros(3), []
    assert scale.value == 1.0
    for reward, end in zip(rewards, over, strict=True):
        scale.follow(reward, end)
        running = 0.5 * running + reward
        seen.append(running.copy())
        running[end] = 0.0
    assert scale.value == pytest.approx(np.std(seen))
    before = scale.value
    scale.follow(np.array([1.0, np.nan, 2.0]), np.zeros(3, bool))
    assert scale.value == before
    agent = tiny("sac")
    agent.learn(40)
    agent.save(tmp_path / "agent.zip")
    assert JEPASAC.load(tmp_path / "agent.zip").joint.returns.value == agent.joint.returns.value != 1.0


def test_a_gradient_that_is_no_number_changes_nothing_and_a_large_one_is_clipped():
    agent = tiny("td3", joint={"weight": 0.0}, learning_starts=10_000)
    agent.learn(36)

    def step(scale):
        z = agent.replay_buffer.sample(16).observations
        (scale * z[:, 0] * z[:, 1]).sum().backward()
        agent.joint.update()

    step(1e6)
    assert agent.joint.terms["gradient_norm"] > 20
    norms = [p.grad.norm() for p in agent.joint.learning if p.grad is not None]
    assert torch.stack(norms).norm() <= 20 * 1.001
    before = parameters(agent.joint)
    with pytest.raises(
        ValueError, match="training broke after 1 updates: the norm of the agent's gradient is nan"
    ):
        step(float("nan"))
    for name, value in agent.joint.named_parameters():
        assert torch.equal(value, before[name]), name
        assert torch.isfinite(value).all()


def test_the_world_model_learns_what_the_environment_pays():
    """The reward head's error falls far below that of a constant."""
    agent = tiny("sac", joint={"steps": 2}, gamma=0.9, learning_starts=10_000)
    agent.learn(300)
    agent.joint.optimizer.param_groups[0]["lr"] = 3e-3
    for _ in range(200):
        (0 * agent.replay_buffer.sample(64).observations).sum().backward()
        agent.joint.update()
    agent.replay_buffer.sample(512)
    error = float(agent.joint._pending.terms["predicted_reward"])
    drawn = agent.replay_buffer.episodes.sample(512, 1, np.random.default_rng(0)).rewards[:, 0]
    two_hot = agent.joint.two_hot
    weights_of_bins = two_hot.encode(drawn / agent.joint.returns.value)
    constant = -(weights_of_bins * weights_of_bins.mean(0).clamp_min(1e-9).log()).sum(1).mean()
    own = -(weights_of_bins * weights_of_bins.clamp_min(1e-9).log()).sum(1).mean()  # the least possible
    assert error - float(own) < 0.5 * float(constant - own)


class FilteredDict(gym.ObservationWrapper):
    def __init__(self):
        super().__init__(Dot())
        self.observation_space = spaces.Dict(
            pixels=Dot.observation_space, state=spaces.Box(-1, 1, (1,), np.float32)
        )

    def observation(self, observation):
        return {"pixels": observation, "state": np.zeros(1, np.float32)}


class FromOne(gym.ActionWrapper):
    def __init__(self):
        super().__init__(Dot(discrete=True))
        self.action_space = spaces.Discrete(3, start=1)

    def action(self, action):
        return action - 1


class Counting(gym.Env):
    """Shows the step it is in and pays it; the third episode ends by itself, the others by their length."""

    observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)
    action_space = spaces.Discrete(2)
    played = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.ends = 0, self.played % 2 == 1
        self.played += 1
        return np.full((1, SIZE, SIZE), self.t, np.uint8), {}

    def step(self, action):
        self.t += 1
        over = self.t >= 5
        seen = np.full((1, SIZE, SIZE), self.t, np.uint8)
        return seen, float(self.t), over and self.ends, over and not self.ends, {}


@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_replay_gives_the_rewards_discounts_and_ends_of_its_episodes(n_steps):
    joint = {"steps": 3, "scale_rewards": False}
    agent = tiny("dqn", env=Counting(), joint=joint, gamma=0.5, n_steps=n_steps, learning_starts=10_000)
    agent.learn(40)
    shown = []

    def latents(batch):
        shown.append(batch)
        return Seen(torch.zeros(len(batch.actions), 8), batch.future.float().mean((1, 2, 3)).unsqueeze(1))

    agent.joint.latents = latents
    batch = agent.replay_buffer.sample(200)
    now = shown[0].pixels[:, 0, 0, 0, 0]
    for row in range(200):
        t = int(now[row])
        taken = min(n_steps, 5 - t)
        assert batch.rewards[row] == pytest.approx(sum(0.5**i * (t + 1 + i) for i in range(taken)))
        assert batch.discounts[row] == pytest.approx(0.5**taken)
        assert batch.next_observations[row] == pytest.approx(t + taken)
        if t + taken < 5:
            assert not batch.dones[row]
    at_end = now.numpy() + n_steps >= 5
    assert {0.0, 1.0} == set(batch.dones.numpy()[at_end].ravel().tolist())  # time limits are no ends
    valid = shown[0].valid
    np.testing.assert_array_equal(valid.sum(1).numpy(), np.minimum(3, 5 - now.numpy()))


def test_windows_of_a_rollout_end_with_their_episode_and_with_the_rollout():
    agent = JEPAPPO(
        "CnnPolicy", make_vec_env(Counting, 2), n_steps=12, batch_size=8, n_epochs=1,
        policy_kwargs=jepa_policy_kwargs(latent_dim=8, world=WORLD, steps=3),
    )  # fmt: skip
    agent.learn(24)
    step, env = np.divmod(np.arange(24), 2)
    batch = agent.rollout_buffer.windows(step, env)
    t = batch.pixels[:, 0, 0, 0, 0].numpy()
    # The last state of an episode is not in a rollout, so the transition into it is no example.
    expected = np.minimum(np.minimum(3, 4 - t), 11 - step)
    np.testing.assert_array_equal(batch.valid.sum(1).numpy(), expected)
    shown = batch.pixels[:, :, 0, 0, 0].numpy()
    for row in range(24):
        np.testing.assert_array_equal(shown[row], t[row] + np.minimum(np.arange(4), expected[row]))


@pytest.mark.parametrize("discrete", [True, False])
def test_ppos_epochs_read_what_was_acted_on(discrete):
    """The ratio of probabilities is then 1 before the policy learns, whatever happened to the encoder before."""
    agent = tiny("ppo", env=make_vec_env(lambda: Dot(discrete=discrete), 2), n_steps=8)
    for learned in (0, 16):
        agent.learn(learned)
        buffer, before = agent.rollout_buffer, weights(agent.joint.world)
        _, callback = agent._setup_learn(16)
        agent.collect_rollouts(agent.env, callback, buffer, 8)
        for rows in buffer.get(5):
            actions = rows.actions.long().flatten() if discrete else rows.actions
            _, found, _ = agent.policy.evaluate_actions(rows.observations, actions)
            torch.testing.assert_close(found, rows.old_log_prob, rtol=1e-4, atol=1e-5)
        assert not moved(before, agent.joint.world)


def test_the_policy_is_kept_while_its_encoder_learns():
    """A strong objective moves the latents; with ``clone`` the policy follows them."""
    kept = {}
    for clone in (0.0, 30.0):
        agent = tiny(
            "ppo", joint={"weight": 50.0}, n_steps=64, learning_rate=3e-3, encoder_epochs=30, clone=clone
        )
        agent.learn(64)
        buffer = agent.rollout_buffer
        with torch.no_grad():
            means = [
                agent.policy.get_distribution(z).distribution.mean
                for z in (
                    buffer.acted.flatten(0, 1),
                    agent.joint.acting(torch.from_numpy(buffer.observations[:, 0])),
                )
            ]
        kept[clone] = (means[0] - means[1]).square().mean().item()
    assert kept[30.0] < 0.3 * kept[0.0], kept


def test_callbacks_wrappers_and_files_of_stable_baselines3_work(tmp_path):
    agent = tiny("sac", tensorboard_log=str(tmp_path))
    evaluate = EvalCallback(make_vec_env(Dot, 1), eval_freq=40, log_path=str(tmp_path), verbose=0)
    agent.learn(80, callback=[evaluate, CheckpointCallback(40, str(tmp_path))], progress_bar=False)
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == [
        "rl_model_40_steps.zip",
        "rl_model_80_steps.zip",
    ]
    latent = wrap(Dot(), agent.world)
    assert latent.observation_space.shape == (8,)
    agent.world.save(tmp_path / "world.safetensors")
    pixels = torch.as_tensor(Dot().reset(seed=0)[0])[None]
    torch.testing.assert_close(
        WorldModel.load(tmp_path / "world.safetensors").encode(pixels), agent.world.encode(pixels)
    )
    terms = agent.logger.name_to_value
    agent.train(1, 8)
    assert {"jepa/consistency", "jepa/anti_collapse", "train/critic_loss"} <= terms.keys()


def test_a_killed_run_goes_on_from_its_last_evaluation(tmp_path):
    def callbacks():
        curve = EvaluationCallback(Dot, 40, 1, 0, tmp_path / "curve.json")
        return [curve, SaveAtEvaluation(curve, tmp_path / "saved")]

    agent = tiny("sac")
    agent.learn(80, callback=callbacks())
    saved = SaveAtEvaluation.newest(tmp_path / "saved")
    loaded = load_saved(JEPASAC, saved, make_vec_env(Dot, 1))
    assert loaded.num_timesteps == 80 and loaded.replay_buffer.size() == agent.replay_buffer.size() > 0
    loaded.learn(40, callback=callbacks(), reset_num_timesteps=False)
    assert loaded.num_timesteps == 120


def test_learning_that_was_stopped_in_a_step_begins_a_new_episode():
    agent = tiny("sac")
    agent.learn(500, callback=StopTrainingOnMaxEpisodes(2))
    stored = agent.replay_buffer.size()
    agent.learn(30, reset_num_timesteps=False)
    lengths = agent.replay_buffer.episodes.episodes[:, 1]
    assert agent.replay_buffer.size() > stored and lengths.max() <= 12


def test_several_environments_and_scaled_rewards():
    venv = VecNormalize(DummyVecEnv([Dot, Dot]), norm_obs=False)
    agent = tiny("sac", env=venv, n_steps=1)
    agent.learn(60)
    found = {}
    for name, scales in (("venv", venv), ("own", None)):
        agent.replay_buffer.rng = np.random.default_rng(0)
        found[name] = agent.replay_buffer.sample(64, scales).rewards
    agent.replay_buffer.rng = np.random.default_rng(0)
    plain = agent.replay_buffer.episodes.sample(64, 1, agent.replay_buffer.rng).rewards
    torch.testing.assert_close(found["own"], plain / agent.joint.returns.value)
    torch.testing.assert_close(found["venv"], plain / float(venv.ret_rms.var + venv.epsilon) ** 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny("ppo", replay_buffer_class=JEPAReplayBuffer), "PPO learns on rollouts and has no replay"),
        (lambda: tiny("ppo", buffer_size=100), "leave out buffer_size"),
        (lambda: tiny("sac", joint={"normalize_images": True}), "leave out normalize_images"),
        (lambda: tiny("sac", batch_size=1), "batch_size must be at least 2"),
        (lambda: tiny("sac", env=VecNormalize(DummyVecEnv([Dot]))), "norm_obs=False"),
        (lambda: JEPASAC("MultiInputPolicy", FilteredDict()), "without keep_state"),
        (lambda: JEPADQN("CnnPolicy", FromOne()), "counts choices from 0"),
        (lambda: tiny("sac", replay_buffer_class=JEPARolloutBuffer), "must be a JEPAReplayBuffer"),
        (lambda: tiny("sac", optimize_memory_usage=True), "stores each frame once already"),
        (lambda: tiny("sac", buffer_size=10**12), "GB"),
        (lambda: tiny("sac", n_steps=0), "n_steps must be at least 1"),
        (lambda: tiny("sac", joint={"steps": 0}), "steps must be at least 1"),
        (lambda: tiny("sac", joint={"weight": -1.0}), "weight must be at least 0"),
        (lambda: tiny("sac", joint={"reward": -1.0}), "reward must be at least 0"),
        (lambda: tiny("sac", joint={"agent": 1.5}), r"agent must lie in \[0, 1\], got 1.5"),
        (lambda: tiny("sac", joint={"agent": 0.0, "weight": 0.0}), "must not both be 0"),
        (lambda: tiny("sac", world={"encoder": "vit", "encoder_options": {"patch": 5}}), "patch"),
        (lambda: JEPASAC("CnnPolicy", Dot(), policy_kwargs={"features_extractor_class": None}), "jepa_policy_kwargs"),
        (lambda: JEPASAC("MlpPolicy", "Pendulum-v1"), "PixelObservation"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_algorithms_are_told_apart():
    for algorithm, env in ((SAC, Dot()), (PPO, Dot()), (DQN, Dot(discrete=True))):
        settings = {"n_steps": 4, "batch_size": 4} if algorithm is PPO else {"buffer_size": 10}
        agent = algorithm("CnnPolicy", env, policy_kwargs=jepa_policy_kwargs(world=WORLD), **settings)
        with pytest.raises(RuntimeError, match=f"JEPA{algorithm.__name__} instead of {algorithm.__name__}"):
            agent.predict(env.reset(seed=0)[0])
    with pytest.raises(AssertionError, match="Discrete"):
        JEPADQN("CnnPolicy", Dot())


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_rewards_that_are_no_numbers_are_refused_before_anything_is_learned(name):
    env = gym.wrappers.TransformReward(Dot(), lambda r: float("nan"))
    agent = tiny(name, env=env)
    before = weights(agent.policy)
    with pytest.raises(ValueError, match="rewards hold NaN"):
        agent.learn(64)
    assert not moved(before, agent.policy)


def test_a_state_of_another_device_loads_and_memory_is_taken_only_for_learning(tmp_path):
    agent = tiny("sac")
    agent.learn(40)
    agent.save(tmp_path / "agent.zip")
    parameters = agent.get_parameters()
    parameters["joint"]["_extra_state"] = torch.zeros(16, dtype=torch.uint8)  # as a generator on a GPU has it
    agent.set_parameters(parameters)
    loaded = JEPASAC.load(tmp_path / "agent.zip")
    assert loaded.replay_buffer._episodes is None and loaded.replay_buffer.size() == 0
    agent.replay_buffer.reset()
    assert agent.replay_buffer.size() == 0


def test_rollouts_that_do_not_divide_evenly():
    agent = tiny("ppo", n_steps=33, batch_size=16)
    before = weights(agent.policy)
    agent.learn(33)
    assert moved(before, agent.policy)
    assert all(torch.isfinite(value).all() for value in weights(agent.policy).values())


def test_policies_that_squash_their_actions_store_them_scaled():
    env = gym.wrappers.RescaleAction(Dot(), np.float32(-2.0), np.float32(2.0))
    agent = tiny("ppo", env=env, use_sde=True, joint={"squash_output": True})
    agent.learn(32)
    rollout = agent.rollout_buffer
    actions = rollout.windows(np.arange(20), np.zeros(20, int)).actions[:, 0]
    np.testing.assert_allclose(actions, np.clip(rollout.actions[:20, 0], -1, 1), rtol=1e-6)
