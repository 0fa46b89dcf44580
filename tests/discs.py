"""Drawings of a disc, and a few updates of a small world model on them."""

import torch

from jepa_rl import ActionSpec, Batch, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.training import descend

SPEC = WorldSpec((3, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(rows, seed):
    """Discs of any colour and place on black: pictures uint8 "b 3 16 16", and the places "b 2" in pixels."""
    rng = seeded(seed)
    place = 5 + 6 * torch.rand(rows, 2, 1, 1, generator=rng)
    colour = 0.2 + 0.8 * torch.rand(rows, 3, 1, 1, generator=rng)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ink = (5 - torch.hypot(y - place[:, 0], x - place[:, 1])).clamp(0, 1)
    return (255 * colour * ink.unsqueeze(1)).round().to(torch.uint8), place.flatten(1)


def batch_of(pictures, steps=1):
    """Windows of consecutive pictures; nothing is done in them."""
    windows = pictures.unflatten(0, (-1, steps + 1))
    zeros = torch.zeros(len(windows), steps)
    return Batch(windows, torch.zeros(len(windows), steps, 2), zeros, zeros.bool())


def make_world(objective, spec=SPEC, encoder="conv", encoder_options=None, **options):
    torch.manual_seed(0)
    small = {"widths": (8, 16)} if encoder_options is None else encoder_options
    config = WorldModelConfig(
        spec, 8, encoder, encoder_options=small, dynamics_options={"width": 16, "depth": 1},
        objective=objective, objective_options=options,
    )  # fmt: skip
    return WorldModel(config).train()


def updates(world, count, seed=0, rate=3e-3, optimizer=None):
    """Updates on 64 discs each. Returns the optimiser."""
    learning = [p for p in world.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.Adam(learning, rate)
    rng = seeded(seed)
    for update in range(count):
        loss, _ = world.train().loss(batch_of(discs(64, 1000 * seed + update)[0]), rng)
        descend(loss, [optimizer], learning, 1.0)
        world.after_update()
    return optimizer


def measured(world):
    """Running statistics of the encoder's batch norms; nothing else changes. Returns the world in evaluation mode."""
    with torch.no_grad():
        for update in range(30):
            world.train().encode(discs(64, update)[0])
    return world.eval()
