"""Proposals of plans: paths of latents from a state to a goal, drawn from a flow, and the actions along them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_whole
from jepa_rl.dynamics.flow.dynamics import FlowDynamics
from jepa_rl.files import load_tensors, naming, save_tensors
from jepa_rl.memory import weights_within


class KnowsItsEncoder(Protocol):
    """A ``WorldModel``, as far as files of proposals need it."""

    def encoder_fingerprint(self) -> str: ...

    def check_encoder(self, path: str | Path, fingerprint: str | None, trainer: str) -> None: ...


class FlowProposals(nn.Module):
    """Draws paths of latents from a state to a goal, and predicts the actions that lead along them.

    A flow over latent paths proposes where to go, an inverse model how, and the world model decides which of the
    proposals to trust (LeFlow's idea). The flow is ``FlowDynamics`` conditioned, in place of actions, on the goal and
    on the number of steps left until it is to be reached; proposals differ in that number and in their noise.

    Args:
        latent_dim, action_dim: of the dynamics that are planned in; actions are continuous, in [-1, 1].
        horizon: latent steps of a path, and the most that a goal may be away.
        width: hidden units of the inverse model.
        flow: options of ``FlowDynamics`` by name; one evaluation for each state is the default here, because the
            world model sorts out paths that are drawn badly.

    Raises:
        ValueError: for sizes that are no whole numbers of at least 1.
    """

    def __init__(self, latent_dim: int, action_dim: int, horizon: int, width: int = 256, **flow: Any) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "action_dim": action_dim, "horizon": horizon, "width": width}
        check_whole(**sizes)
        self.horizon, self.latent_dim, self.action_dim, self.width = horizon, latent_dim, action_dim, width
        self.paths = FlowDynamics(latent_dim, latent_dim + 1, **{"evaluations": 1} | flow)
        self.inverse = nn.Sequential(
            nn.Linear(2 * latent_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, action_dim), nn.Tanh(),
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that build the same module again, as files hold them."""
        flow = self.paths.settings
        sizes = {name: getattr(self, name) for name in ("latent_dim", "action_dim", "horizon", "width")}
        # The network's sizes by themselves: its width is not that of the inverse model.
        return sizes | {"network": asdict(flow.network)} | asdict(flow.training) | asdict(flow.sampling)

    def actions_between(
        self, z: Float[Tensor, "*b d"], after: Float[Tensor, "*b d"]
    ) -> Float[Tensor, "*b a"]:
        """The action that leads from one state to the next."""
        pair = [self.paths.standardise(latent) for latent in (z, after)]
        return self.inverse(torch.cat(pair, dim=-1))

    def loss(
        self,
        pair: Float[Tensor, "b 2 d"],
        condition: Float[Tensor, "b 1 d+1"],
        actions: Float[Tensor, "b a"],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The flow's loss, and the inverse model's mean squared error.

        Args:
            pair: a state and the next one on the way.
            condition: the goal, and the share of the horizon that is left.
            actions: between the two states.
            generator: of the flow's noise.
        """
        predicted = self.actions_between(pair[:, 0], pair[:, 1])
        return self.paths.loss(pair, condition, generator)[0] + (predicted - actions).square().mean()

    @torch.no_grad()
    def draw(
        self,
        z: Float[Tensor, "b d"],
        goal: Float[Tensor, "b d"],
        count: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b p t d"], Float[Tensor, "b p h a"]]:
        """Draws proposals.

        Args:
            z: states now.
            goal: latents to reach.
            count: at least so many paths are drawn, as many for each arrival in 1 to ``horizon`` steps.
            generator: of the noise, which all rows share.

        Returns:
            Paths with ``z`` first, and the actions along them.
        """
        h = self.horizon
        arrival = torch.arange(1, h + 1, device=z.device)
        left = (arrival[:, None] - torch.arange(h, device=z.device)).clamp_min(0).to(z) / h
        condition = torch.cat(
            [goal[:, None, None].expand(-1, h, h, -1), left[None, :, :, None].expand(len(z), -1, -1, -1)],
            dim=-1,
        )
        rows = z.repeat_interleave(h, dim=0)
        paths = self.paths.rollout(rows, condition.flatten(0, 1), futures=-(-count // h), generator=generator)
        paths = paths.unflatten(0, (len(z), h)).flatten(1, 2)
        return paths, self.actions_between(paths[:, :, :-1], paths[:, :, 1:])

    def save(self, path: str | Path, world: KnowsItsEncoder | None = None) -> None:
        """Writes one safetensors file, atomic.

        Args:
            path: of the file.
            world: the world model whose latents these are; without it a file cannot tell whose they are.
        """
        encoder = None if world is None else world.encoder_fingerprint()
        save_tensors(
            path, "flow_proposals", self.state_dict(), {"settings": self.settings, "encoder": encoder}
        )

    @classmethod
    def load(
        cls, path: str | Path, device: str = "cpu", world: KnowsItsEncoder | None = None
    ) -> FlowProposals:
        """Reads a file of ``save``; nothing in it is executed.

        Args:
            path: of the file.
            device: where the weights go.
            world: the world model that they are for.

        Raises:
            FileNotFoundError, ValueError: as ``WorldModel.load``, and for proposals in another encoder's latents than
                those of ``world``.
        """
        tensors, header = load_tensors(path, ("flow_proposals",), device)
        if world is not None:
            world.check_encoder(path, header.get("encoder"), "fit_flow_proposals")
        with naming(path, "does not describe proposals of this version"), weights_within(tensors.values()):
            proposals = cls(**header["settings"]).to(device)
            proposals.load_state_dict(tensors)
        return proposals.eval().requires_grad_(False)
