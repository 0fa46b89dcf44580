"""How fast CEM plans, against the CEM solver of stable-worldmodel 0.1.1 on the same predictor.

Both sides plan with one network, the predictor of LeWorldModel in its published sizes: the peer through
its own ``CEMSolver``, ``LeWM`` and ``Predictor``, this library through ``CEM`` and
``CausalTransformerDynamics`` holding the converted weights. Samples, elites, iterations, horizon, cost
(squared distance of the last latent), starts, goals, action bounds and threads are the same; the peer
solves at the fastest of its batch sizes. Every case runs in float32 on both sides and under bfloat16
autocast on both sides; the headline ratios are those in float32, the precision that the peer runs in. What
``MPCAgent(precision="bfloat16")`` gives against the peer as published stands beside them. Start and
goal are given as latents: encoding two pictures is the same work for both and is left out. Weights are
random (seeded); each goal is a latent that some plan within the bounds reaches, and both plans are
priced by the peer's own model. A smaller predictor, this library's default, runs beside the published one.

The first run installs the peer into ``runs/planning_speed/peer``. Its ``__init__`` files import much that
no solver uses (torchvision, lancedb); they are passed over and the modules in use run unchanged.

    python benchmarks/planning_speed.py [--quick]
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from _record import refuse_unrecordable, trying, write_results
from torch import Tensor, nn

from jepa_rl.agents import CEM
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics.transformer import CausalTransformerDynamics

PEER = Path(__file__).resolve().parent.parent / "runs" / "planning_speed" / "peer"
BLOCK, ACTION = 5, 2  # environment actions in a latent step, and the width of one (Push-T)


@dataclass(frozen=True)
class Args:
    quick: bool = False
    """Seconds instead of minutes: fewer samples, iterations and repetitions."""
    threads: int = 2
    samples: int = 300
    elites: int = 30
    iterations: int = 6
    horizon: int = 5
    repetitions: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """Sizes of a predictor; the defaults are the published LeWorldModel's."""

    width: int = 192
    depth: int = 6
    heads: int = 16
    head_dim: int = 64
    mlp_width: int = 2048
    head_width: int = 2048
    context: int = 3


PUBLISHED = Sizes()
LAPTOP = Sizes(width=128, depth=3, heads=4, head_dim=32, mlp_width=512, head_width=512)


def import_peer() -> SimpleNamespace:
    """The peer's solver and model classes, installed first if need be."""
    if not (PEER / "stable_worldmodel").exists():
        packages = ["stable-worldmodel==0.1.1", "loguru", "einops"]
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER)]
        subprocess.run([*install, *packages], check=True)
    sys.path.append(str(PEER))
    for name in ("stable_worldmodel", "stable_worldmodel.wm", "stable_worldmodel.solver"):
        package = types.ModuleType(name)  # a package whose __init__ is passed over
        package.__path__ = [str(PEER / name.replace(".", "/"))]
        sys.modules[name] = package
    from stable_worldmodel.solver.cem import CEMSolver
    from stable_worldmodel.wm.lewm.lewm import LeWM
    from stable_worldmodel.wm.lewm.module import MLP, Embedder, Predictor

    return SimpleNamespace(CEMSolver=CEMSolver, LeWM=LeWM, MLP=MLP, Embedder=Embedder, Predictor=Predictor)


class LatentsAsPictures(nn.Module):
    """Stands where the peer has its image encoder: the "pictures" are the latents themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of_inputs = nn.Parameter(torch.zeros(()))

    def forward(self, pixels: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=pixels[:, None])


def make_peer_model(peer: SimpleNamespace, sizes: Sizes) -> nn.Module:
    """The peer's world model with random weights whose actions matter."""

    class Bounded(peer.LeWM):
        """Actions end at [-1, 1], as they do for the other side, and any batch size works.

        As published the goal has no candidate axis, and every batch size but 1 raises.
        """

        def get_cost(self, info_dict: dict, action_candidates: Tensor) -> Tensor:
            return super().get_cost(info_dict, action_candidates.clamp(-1.0, 1.0))

        def criterion(self, info_dict: dict) -> Tensor:
            return super().criterion(info_dict | {"goal_emb": info_dict["goal_emb"][:, None]})

    d = sizes.width
    predictor = peer.Predictor(
        num_frames=sizes.context,
        depth=sizes.depth,
        heads=sizes.heads,
        mlp_dim=sizes.mlp_width,
        input_dim=d,
        hidden_dim=d,
        dim_head=sizes.head_dim,
        dropout=0.1,
    )
    for layer in predictor.transformer.layers:  # they start at zero, which would hide the actions
        nn.init.normal_(layer.adaLN_modulation[-1].weight, std=0.05)
    head = peer.MLP(d, sizes.head_width, d, norm_fn=nn.BatchNorm1d)
    nn.init.normal_(head.net[1].running_mean, std=0.1)
    nn.init.uniform_(head.net[1].running_var, 0.5, 1.5)
    actions = peer.Embedder(input_dim=BLOCK * ACTION, emb_dim=d)
    return Bounded(LatentsAsPictures(), predictor, actions, pred_proj=head).eval()


def converted(model: nn.Module, sizes: Sizes) -> CausalTransformerDynamics:
    """The peer's predictor as this library's dynamics: the same function, layer for layer."""
    old, new = model.state_dict(), {}

    def copy(source: str, target: str) -> None:
        for part in ("weight", "bias"):
            new[f"{target}.{part}"] = old[f"{source}.{part}"]

    new["position"] = old["predictor.pos_embedding"].transpose(0, 1)
    # A convolution over single steps followed by a linear layer is one linear layer.
    first, smooth = old["action_encoder.embed.0.weight"], "action_encoder.patch_embed"
    new["embed_action.0.weight"] = first @ old[f"{smooth}.weight"][:, :, 0]
    new["embed_action.0.bias"] = first @ old[f"{smooth}.bias"] + old["action_encoder.embed.0.bias"]
    copy("action_encoder.embed.2", "embed_action.2")
    for i in range(sizes.depth):
        layer, block = f"predictor.transformer.layers.{i}", f"blocks.{i}"
        query, key, value = old[f"{layer}.attn.to_qkv.weight"].chunk(3)
        new[f"{block}.query.weight"], new[f"{block}.key_value.weight"] = query, torch.cat([key, value])
        copy(f"{layer}.attn.norm", f"{block}.attention_norm")
        copy(f"{layer}.attn.to_out.0", f"{block}.attention_out")
        copy(f"{layer}.mlp.net.0", f"{block}.mlp_norm")
        copy(f"{layer}.mlp.net.1", f"{block}.mlp_in")
        copy(f"{layer}.mlp.net.4", f"{block}.mlp_out")
        copy(f"{layer}.adaLN_modulation.1", f"{block}.modulation")
    copy("predictor.transformer.norm", "head.0")
    # A batch norm at rest scales and shifts: it goes into the linear layer before it.
    norm = model.pred_proj.net[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    new["head.1.weight"] = old["pred_proj.net.0.weight"] * factor[:, None]
    new["head.1.bias"] = (old["pred_proj.net.0.bias"] - norm.running_mean) * factor + norm.bias
    copy("pred_proj.net.3", "head.3")
    dynamics = CausalTransformerDynamics(
        sizes.width,
        BLOCK * ACTION,
        sizes.width,
        sizes.depth,
        sizes.heads,
        sizes.head_dim,
        sizes.mlp_width,
        sizes.context,
    )
    dynamics.load_state_dict(new)
    return dynamics.eval()


@dataclass
class Contest:
    """Both sides on the same planning problems."""

    peer: SimpleNamespace
    model: nn.Module
    dynamics: CausalTransformerDynamics
    args: Args

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def problem(self, environments: int) -> tuple[Tensor, Tensor]:
        """Starts and goals; each goal is reached by some plan within the bounds."""
        generator = torch.Generator().manual_seed(self.args.seed + environments)
        z = torch.randn(environments, self.dynamics.latent_dim, generator=generator)
        shape = (environments, self.args.horizon, self.dynamics.action_dim)
        plan = 2 * torch.rand(shape, generator=generator) - 1
        return z, self.dynamics.rollout(z, plan)[:, 0, -1]

    def theirs(self, z: Tensor, goal: Tensor, batch_size: int, seed: int, iterations: int) -> Tensor:
        args, n = self.args, len(z)
        solver = self.peer.CEMSolver(
            self.model, batch_size, args.samples, n_steps=iterations, topk=args.elites, seed=seed
        )
        config = SimpleNamespace(horizon=args.horizon, action_block=BLOCK)
        solver.configure(action_space=gym.spaces.Box(-1, 1, (n, ACTION), np.float32), n_envs=n, config=config)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its time
            return solver.solve(self._info(z, goal))["actions"]

    def ours(self, z: Tensor, goal: Tensor, seed: int) -> Tensor:
        args = self.args
        planner = CEM(args.horizon, args.samples, args.elites, args.iterations, init_std=1.0, min_std=0.0)
        cost = GoalCost(goal, reduce="last", distance="mse")
        return planner.plan(self.dynamics, cost, z, generator=torch.Generator().manual_seed(seed)).actions

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def price(self, z: Tensor, goal: Tensor, plans: Tensor) -> Tensor:
        """Cost of one plan for each environment, by the peer's own model in float32."""
        info = {k: v[:, None] for k, v in self._info(z, goal).items()}
        return self.model.get_cost(info, plans[:, None].float())[:, 0]

    def _info(self, z: Tensor, goal: Tensor) -> dict[str, Tensor]:
        action = z.new_zeros(len(z), 1, self.dynamics.action_dim)
        return {"pixels": z[:, None], "goal": goal[:, None], "action": action}

    @torch.no_grad()
    def check_same_function(self) -> float:
        """Largest difference of the two rollouts. Raises RuntimeError if it is no rounding error."""
        z, _ = self.problem(8)
        plans = 2 * torch.rand(8, 2 * self.args.horizon, self.dynamics.action_dim) - 1
        info = {k: v[:, None] for k, v in self._info(z, z).items()}
        expected = self.model.rollout(info, plans[:, None])["predicted_emb"][:, 0]
        difference = (self.dynamics.rollout(z, plans)[:, 0] - expected).abs().max().item()
        if difference > 1e-4:
            raise RuntimeError(f"the converted predictor is another function: off by {difference:.2e}")
        return difference

    def run(self, environments: int) -> dict[str, Any]:
        """Seconds of both, interleaved, and what their plans cost."""
        z, goal = self.problem(environments)
        sizes = [s for s in (1, 2, 4, 8, 16) if s <= environments]
        sweep = {}
        if len(sizes) > 1:
            sweep = {s: seconds(lambda s=s: self.theirs(z, goal, s, 0, 1))[0] for s in sizes}
        best = min(sweep, key=sweep.__getitem__) if sweep else 1
        times, costs = {"theirs": [], "ours": []}, {"theirs": [], "ours": []}
        for seed in range(self.args.repetitions):
            for side, plan in (
                ("theirs", lambda seed=seed: self.theirs(z, goal, best, seed, self.args.iterations)),
                ("ours", lambda seed=seed: self.ours(z, goal, seed)),
            ):
                took, plans = seconds(plan)
                times[side].append(took)
                costs[side].append(self.price(z, goal, plans).mean().item())
        ratios = [t / o for t, o in zip(times["theirs"], times["ours"], strict=True)]
        return {
            "ratio": median(ratios),
            "ratios": ratios,
            "peer_seconds": median(times["theirs"]),
            "seconds": median(times["ours"]),
            "peer_batch_size": best,
            "peer_seconds_by_batch_size": sweep,
            "peer_costs": costs["theirs"],
            "costs": costs["ours"],
            "cost_of_standing_still": self.price(z, goal, torch.zeros_like(plans)).mean().item(),
        }


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def compete(peer: SimpleNamespace, sizes: Sizes, args: Args, bfloat16: bool = False) -> dict[str, Any]:
    torch.manual_seed(args.seed)
    model = make_peer_model(peer, sizes)
    contest = Contest(peer, model, converted(model, sizes), args)
    difference = contest.check_same_function()
    result: dict[str, Any] = {"sizes": asdict(sizes), "largest_difference_of_rollouts": difference}
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        contest.theirs(*contest.problem(1), 1, 0, 1)  # warm up
        contest.ours(*contest.problem(1), 0)
        for environments in (1, 16):
            result[f"{environments}_env"] = contest.run(environments)
    return result


def report(kind: str, environments: int, r: dict[str, Any]) -> None:
    print(
        f"{kind:20} {environments:3} env: {r['peer_seconds']:8.3f} s -> {r['seconds']:8.3f} s, "
        f"{r['ratio']:.2f}x; costs {median(r['peer_costs']):.4g} and {median(r['costs']):.4g} "
        f"(standing still {r['cost_of_standing_still']:.4g})",
        flush=True,
    )


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    if args.quick:
        args = Args(quick=True, threads=args.threads, samples=32, elites=4, iterations=2, repetitions=1)
    torch.set_num_threads(args.threads)
    peer = import_peer()
    cases = {}
    for name, sizes in (("published", PUBLISHED), ("laptop", LAPTOP)):
        for bfloat16 in (False, True):
            kind = f"{name}_{'bfloat16' if bfloat16 else 'float32'}"
            cases[kind] = compete(peer, sizes, args, bfloat16)
            for n in (1, 16):
                report(kind, n, cases[kind][f"{n}_env"])
    payload = {"settings": asdict(args), "cases": cases}
    for n, key in ((1, "ratio_1_env"), (16, "ratio_16_envs")):
        for precision, suffix in (("float32", ""), ("bfloat16", "_bfloat16")):
            payload[key + suffix] = cases[f"published_{precision}"][f"{n}_env"]["ratio"]
            print(f"published predictor, {precision}, {n} env: {payload[key + suffix]:.2f}x")
        single, half = (cases[f"published_{precision}"][f"{n}_env"] for precision in ("float32", "bfloat16"))
        payload[key + "_bfloat16_against_float32"] = single["peer_seconds"] / half["seconds"]
    print(write_results("planning_speed", payload, quick=args.quick))


if __name__ == "__main__":
    main(tyro.cli(Args))
