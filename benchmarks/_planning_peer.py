"""The peer of planning_speed.py: stable-worldmodel 0.1.1, its predictor, and the same predictor as ours."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from jepa_rl.dynamics.transformer import CausalTransformerDynamics

RUNS = Path(__file__).resolve().parent.parent / "runs" / "planning_speed"
PEER = RUNS / "peer"
BLOCK, ACTION = 5, 2  # environment actions in a latent step, and the width of one (Push-T)


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
    """The peer's world model with the weights that it begins with."""

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
    head = peer.MLP(d, sizes.head_width, d, norm_fn=nn.BatchNorm1d)
    actions = peer.Embedder(input_dim=BLOCK * ACTION, emb_dim=d)
    return Bounded(LatentsAsPictures(), predictor, actions, pred_proj=head).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Weights with which actions matter, as they do after training."""
    for layer in model.predictor.transformer.layers:  # they start at zero, which would hide the actions
        nn.init.normal_(layer.adaLN_modulation[-1].weight, std=0.05)
    norm = model.pred_proj.net[1]
    nn.init.normal_(norm.running_mean, std=0.1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


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
