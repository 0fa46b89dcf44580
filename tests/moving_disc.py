"""Drawings of a moving disc, and what a latent says of its place."""

from dataclasses import replace

import torch

from jepa_rl import ActionSpec, Batch, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.diagnostics.probes import fit_linear_probe, r2_score
from jepa_rl.training import descend

SPEC = WorldSpec((1, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
VIT = {"width": 32, "depth": 1, "heads": 2, "patch": 4, "pool": False}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def world_of(objective, latent_dim=8, encoder=None, **options) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(
        WorldModelConfig(
            SPEC, latent_dim, encoder="vit", encoder_options=VIT | (encoder or {}), objective=objective,
            dynamics_options={"width": 32, "depth": 1}, objective_options=options,
        )
    ).train()  # fmt: skip


def discs(rows, generator, steps=1) -> tuple[Batch, torch.Tensor]:
    """Windows of a bright disc of radius 3 that moves by twice the action, and where it is, (row, column)."""
    moves = 2 * torch.rand(rows, steps, 2, generator=generator) - 1
    first = 2 + 11 * torch.rand(rows, 1, 2, generator=generator)
    path = torch.cat([first, first + (2 * moves).cumsum(1)], 1).clamp(1, 14)
    line = torch.arange(16.0)
    y, x = line[:, None] - path[..., 0, None, None], line - path[..., 1, None, None]
    pixels = (255 * (3 - (y**2 + x**2).sqrt()).clamp(0, 1)).to(torch.uint8).unsqueeze(2)
    zeros = torch.zeros(rows, steps)
    return Batch(pixels, moves, zeros, zeros.bool()), path


def disturbed(rows, generator, steps=1) -> tuple[Batch, torch.Tensor]:
    """The disc of radius 6, as faint horizontal stripes; each patch has stronger vertical ones, of any contrast."""
    batch, path = discs(rows, generator, steps)
    line = torch.arange(16.0)
    y, x = line[:, None] - path[..., 0, None, None], line - path[..., 1, None, None]
    contrast = 2 * torch.rand(rows, steps + 1, 4, 4, generator=generator) - 1
    contrast = contrast.repeat_interleave(4, 2).repeat_interleave(4, 3)
    stripes = line % 2 * 2 - 1
    pixels = 128 + 35 * (y**2 + x**2 < 36) * stripes[:, None] + 90 * contrast * stripes
    return replace(batch, observations=pixels.to(torch.uint8).unsqueeze(2)), path


def learn(world, updates, rate, draw=discs, seed=1) -> WorldModel:
    """Updates on fresh drawings, 32 windows each."""
    generator = seeded(seed)
    optimiser = torch.optim.Adam([p for p in world.parameters() if p.requires_grad], lr=rate)
    for _ in range(updates):
        loss, _ = world.train().loss(draw(32, generator)[0], generator)
        descend(loss, [optimiser], world.parameters(), 1.0)
        world.after_update()
    return world


def known_place(world, draw=discs) -> float:
    """R2 of a linear probe of the place on drawings that the probe has not seen."""
    batch, path = draw(600, seeded(99))
    with torch.no_grad():
        z = world.eval().encode(batch.pixels[:, 0])
    probe = fit_linear_probe(z[:300], path[:300, 0])
    return float(r2_score(probe(z[300:]), path[300:, 0]).mean())
