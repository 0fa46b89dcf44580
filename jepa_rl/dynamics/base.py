"""What dynamics that draw futures share: standardised latents, common noise, bounded memory, the energy score."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl import distributed
from jepa_rl.checks import check_each
from jepa_rl.types import Dynamics

# Activations of one layer that a rollout without gradients may hold at once, in numbers: about what caches hold. And
# all that it may hold: 256 MB of float32.
AT_ONCE = 2**19
HELD_AT_ONCE = 2**26


class TrainableDynamics(nn.Module):
    """Base of dynamics that learn; a subclass gives ``rollout``, and what else differs from these defaults.

    Args:
        latent_dim, action_dim: widths of latent and action.

    Attributes:
        markov: whether the newest latent says all that ``rollout`` knows of the past, so that rolling out in two parts
            is rolling out at once. Searches that go on from imagined states need it.

    Raises:
        ValueError: for widths below 1.
    """

    markov: bool = True

    def __init__(self, latent_dim: int, action_dim: int) -> None:
        super().__init__()
        check_each(lambda width: width >= 1, "be at least 1", latent_dim=latent_dim, action_dim=action_dim)
        self.latent_dim, self.action_dim = latent_dim, action_dim

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Latents "b n h+1 d" with ``z`` first; see ``jepa_rl.types.Dynamics``."""
        raise NotImplementedError(f"{type(self).__name__} must have a method rollout")

    def step(
        self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d"]:
        """The next latent, or one draw of it."""
        return self.rollout(z, action.unsqueeze(1), generator=generator)[:, 0, 1]

    def draw(
        self,
        z: Float[Tensor, "b d"],
        action: Float[Tensor, "b a"],
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Next latents, drawn for each row on its own, where ``rollout`` gives all rows the same noise.

        Planners compare rows, so they want common noise; imagined episodes side by side do not. The default is for
        dynamics without noise, which may answer fewer futures than were asked for.
        """
        return self.rollout(z, action.unsqueeze(1), futures=futures, generator=generator)[:, :, 1]

    def loss(
        self,
        latents: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss on windows of latents, already averaged, and its terms.

        The default is the mean squared error of the open-loop rollout (LeWorldModel, arXiv:2603.19312, eq. 1).
        """
        error = F.mse_loss(self.rollout(latents[:, 0], actions)[:, 0, 1:], latents[:, 1:])
        return error, {"prediction": error}

    def observe(self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> None:
        """Takes statistics of the training data, once, before the dynamics learn on frozen latents."""

    def follow(self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> None:
        """Moves such statistics towards a batch, where the encoder learns too and its latents move."""

    def after_update(self) -> None:
        """Called after every step of the optimiser."""


class Standardised(TrainableDynamics):
    """Base of dynamics that learn on standardised latents and actions; ``observe`` takes the spread from data.

    Networks whose inputs are small learn sharp changes late: on TableEdge standardised actions cut the error of the
    fall probability to a third.

    Attributes:
        mean, std: of every latent dimension.
        change: root mean square of one step's change, standardised.
        action_mean, action_std: of every dimension of the action.
    """

    mean: Tensor
    std: Tensor
    change: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, latent_dim: int, action_dim: int) -> None:
        super().__init__(latent_dim, action_dim)
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.register_buffer("change", torch.ones(latent_dim))
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> None:
        """Takes the spread of states, changes and actions from windows of the training data."""
        for name, value in self._spread(latents, actions).items():
            getattr(self, name).copy_(value)

    @torch.no_grad()
    def follow(
        self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"], rate: float = 0.01
    ) -> None:
        """Moves the spread towards that of a batch: where the encoder learns, too, latents do not stay as they are."""
        for name, value in self._spread(latents, actions).items():
            # Not in place: the graph of a rollout in the same update holds the buffers.
            setattr(self, name, torch.lerp(getattr(self, name), value, rate))

    def _spread(self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> dict[str, Tensor]:
        """The buffers that belong to a batch."""
        mean, std = distributed.mean, distributed.std
        spread = std(latents, (0, 1)).clamp_min(1e-4)
        change = mean(latents.diff(dim=1).square(), (0, 1)).sqrt() / spread
        return {
            "mean": mean(latents, (0, 1)),
            "std": spread,
            "change": change.clamp_min(1e-2),
            "action_mean": mean(actions, (0, 1)),
            "action_std": std(actions, (0, 1)).clamp_min(1e-4),
        }

    def standardise(self, latents: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return (latents - self.mean) / self.std

    def standardise_actions(self, actions: Float[Tensor, "... a"]) -> Float[Tensor, "... a"]:
        return (actions - self.action_mean) / self.action_std

    def destandardise(
        self, path: Float[Tensor, "b n h d"], z: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n h+1 d"]:
        """Drawn states in the latents' own units behind ``z``, untouched."""
        first = z[:, None, None].expand(-1, path.shape[1], 1, -1)
        return torch.cat([first, path * self.std + self.mean], dim=2)

    def check(self, z: Tensor, actions: Tensor, futures: int) -> None:
        """Raises ValueError for what ``rollout`` cannot answer."""
        check_rollout(self.latent_dim, self.action_dim, z, actions, futures)
        if not torch.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinite values; check the policy or the plan")


def is_markov(dynamics: Dynamics) -> bool:
    """Whether the newest latent says all that the dynamics know of the past.

    Dynamics say so by an attribute ``markov``; it is optional, and those without it are taken to be Markov.
    """
    return getattr(dynamics, "markov", True)


def check_rollout(
    latent_dim: int, action_dim: int, z: Tensor, actions: Tensor, futures: int, block: int = 1
) -> None:
    """Raises ValueError unless z is "b d" and finite, actions are "b h a" with at least one step, of ``block`` actions
    each, and at least one future is asked for."""
    if futures < 1:
        raise ValueError(f"futures must be at least 1, got {futures}")
    fit = z.ndim == 2 and actions.ndim == 3 and len(z) == len(actions) and actions.shape[1] >= 1
    if not fit or (z.shape[-1], actions.shape[-1]) != (latent_dim, action_dim):
        blocks = f" (blocks of {block} x {action_dim // block})" if block > 1 else ""
        raise ValueError(
            f"expected latents (rows, {latent_dim}) and actions of width {action_dim}{blocks}, (rows, steps, width), "
            f"at least one step for each of them; got {tuple(z.shape)} and {tuple(actions.shape)}"
        )
    if not torch.compiler.is_compiling() and not torch.isfinite(z).all():
        raise ValueError("z holds NaN or infinite values; check the observation and the encoder")


def shared_noise(
    futures: int, horizon: int, z: Float[Tensor, "b d"], generator: torch.Generator | None
) -> Float[Tensor, "n h d"]:
    """Noise of futures and steps, the same for all rows (common random numbers): costs differ by the plans alone."""
    return torch.randn(futures, horizon, z.shape[-1], generator=generator, device=z.device, dtype=z.dtype)


def in_chunks(
    part: Callable[[Tensor, Tensor], Tensor],
    z: Float[Tensor, "b d"],
    actions: Float[Tensor, "b h a"],
    row: int,
    held: int = 0,
) -> Tensor:
    """Processes rows in chunks that fit cache and memory.

    With gradients, which keep all activations anyway, it is one chunk.

    Args:
        part: latents and actions of some rows to what is asked for, rows first.
        z, actions: of all rows.
        row: activations of one layer for each row, in numbers.
        held: numbers that are held for each row in all.
    """
    if torch.is_grad_enabled():
        return part(z, actions)
    chunks = min(len(z), max(-(-len(z) * row // AT_ONCE), -(-len(z) * held // HELD_AT_ONCE)))
    return torch.cat([part(*rows) for rows in zip(z.chunk(chunks), actions.chunk(chunks), strict=True)])


def energy_score(samples: Float[Tensor, "b n d"], truth: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """``mean |sample - truth| - mean |sample - other sample| / 2``; least, in expectation, for the true distribution.

    Gneiting and Raftery 2007, eq. 22, with the unbiased mean over pairs. In one dimension it is the CRPS.
    """
    n = samples.shape[1]
    error = distance(samples - truth[:, None]).mean(-1)
    if n < 2:
        return error
    i, j = torch.triu_indices(n, n, 1, device=samples.device)
    return error - distance(samples[:, i] - samples[:, j]).mean(-1) / 2


def distance(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Euclidean norm whose gradient is finite at 0."""
    return (x.square().sum(-1) + 1e-12).sqrt()


def input_layer(inputs: int, width: int, bias: bool = False) -> nn.Linear:
    """A first layer whose outputs have unit variance for standardised inputs."""
    layer = nn.Linear(inputs, width, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
