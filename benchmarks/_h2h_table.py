"""The arms of the head-to-head and their settings: facts, which every record tells; no code."""

from __future__ import annotations

from typing import Any

from _h2h_arms import Arm, Budget

# Encoders of single frames. Arms that mask need tokens; JEPA and VAE stand on either.
CONV: dict[str, Any] = {"widths": (16, 16, 32)}
VIT: dict[str, Any] = {"width": 64, "depth": 2, "heads": 4, "patch": 8, "pool": False}

BUDGETS = {
    "two_rooms": Budget(updates=3000, pictures=256, width=64),
    "reacher": Budget(updates=6000, pictures=256, width=32),
    "table_edge": Budget(updates=1500, pictures=256, width=16),
    "push": Budget(updates=6000, pictures=256, width=32),
    # Twice the pictures: windows of four frames a state are as many in an update as those of two on reacher.
    "roofed_rooms": Budget(updates=3000, pictures=512, width=64),
}

CLIPS, ACTIONS = "clips", "clips and actions"
EMA = (0.996, 1.0)  # of teachers: decay at first and at last
PREDICTOR: dict[str, Any] = {"width": 32, "depth": 1, "dynamics": 0.0, "ema": EMA}  # of objectives that mask
# No dynamics beside the encoder: they come later, for all arms alike.
ALONE: dict[str, Any] = {"dynamics": 0.0}
SIGREG: dict[str, Any] = {"sigreg": 1.0, "inverse_dynamics": 2.0}
VICREG: dict[str, Any] = {"sigreg": 0.0, "variance": 1.0, "covariance": 0.04, "inverse_dynamics": 2.0}
MILD: dict[str, Any] = {"scale": (0.95, 1.0), "jitter": 0.2}  # views that leave a dot where it is
SCALED: dict[str, Any] = ALONE | {"noise": 0.2, "scales": (1, 4, 16)}  # without scales a VAE misses the dot


def objective(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A setting that was tried: other options of the objective."""
    return {"objective_options": base | changes}


def rate(value: float) -> dict[str, Any]:
    return {"learning_rate": value}


ARMS = {
    # -- prediction
    "jepa_sigreg": Arm(
        "prediction", "A", "trained", ACTIONS, "conv", CONV, "frames_jepa", SIGREG, stacked=True,
        tried=(
            {}, rate(3e-3), objective(SIGREG, sigreg=4.0, inverse_dynamics=40.0),
            objective(SIGREG, sigreg=4.0, inverse_dynamics=40.0) | rate(3e-3),
            objective(SIGREG, sigreg=4.0, inverse_dynamics=10.0) | rate(3e-3),
            objective(SIGREG, sigreg=11.5, inverse_dynamics=40.0) | rate(3e-3),
        ),
        chosen=3,
    ),
    "jepa_vicreg": Arm(
        "prediction", "A", "trained", ACTIONS, "conv", CONV, "frames_jepa", VICREG, stacked=True,
        tried=(
            {}, rate(3e-3), objective(VICREG, covariance=0.4, inverse_dynamics=40.0),
            objective(VICREG, covariance=0.4, inverse_dynamics=40.0) | rate(3e-3),
            objective(VICREG, covariance=0.4, inverse_dynamics=10.0),
            objective(VICREG, variance=4.0, covariance=0.4, inverse_dynamics=40.0),
        ),
        chosen=2,
    ),
    "vjepa": Arm(
        "prediction", "A", "trained", CLIPS, "vit", VIT, "vjepa", PREDICTOR, window=1,
        tried=(
            {}, rate(3e-3), objective(PREDICTOR, ratio=0.9), objective(PREDICTOR, ema=(0.99, 1.0)),
            objective(PREDICTOR, ratio=0.9) | {"window": 5}, objective(PREDICTOR, ratio=0.75) | {"window": 7},
        ),
        chosen=5,
    ),
    "action_free": Arm(
        "prediction", "A", "trained", CLIPS, "conv", CONV, "frames_action_free", {"sigreg": 1.0},
        stacked=True,
        tried=(
            {}, rate(3e-3), objective({}, sigreg=11.5),
            objective({}, sigreg=0.0, variance=1.0, covariance=0.04) | rate(3e-3),
            {"window": 7}, objective({}, sigreg=40.0) | rate(3e-3),
        ),
        chosen=5,
    ),
    # -- recognition
    "dino": Arm(
        "recognition", "A", "trained", "pictures", "conv", CONV, "dino", ALONE | {"local": 2},
        window=1,
        tried=(
            {}, rate(3e-3),
            objective(ALONE, local=2, views={"scale": (0.8, 1.0), "jitter": 0.2},
                      local_scale=(0.5, 0.8)),
            objective(ALONE, local=2, momentum=(0.99, 1.0)) | rate(3e-3),
            objective(ALONE, local=2, views=MILD, local_scale=(0.8, 0.95)),
            objective(ALONE, local=2, views=MILD, local_scale=(0.8, 0.95),
                      sinkhorn=3, prototypes=1024) | {"window": 7},
        ),
        chosen=5,
    ),
    "dinov2": Arm(
        "recognition", "A", "pretrained", "", "pretrained", {"block": 8, "resolution": 84},
        tried=(
            {}, {"whiten": True}, {"encoder_options": {"block": 6, "resolution": 84}},
            {"encoder_options": {"block": 4, "resolution": 84}},
            {"encoder_options": {"block": 6, "resolution": 84}, "whiten": True},
            {"encoder_options": {"block": 4, "resolution": 84}, "whiten": True},
        ),
        chosen=1,
    ),
    # -- reconstruction
    "vae": Arm(
        "reconstruction", "A", "trained", "pictures", "conv", CONV, "vae", SCALED,
        learning_rate=3e-3, window=1,
        tried=(
            {}, objective(SCALED, noise=0.5), objective(SCALED, beta=4.0), rate(1e-3),
            objective(SCALED, noise=1.0), objective(SCALED, noise=0.5, beta=0.1),
        ),
        chosen=1,
    ),
    # -- pixels
    "pixels": Arm(
        "pixels", "A", "pixels", "", "", {"size": 16},
        tried=(
            {}, {"whiten": True}, {"encoder_options": {"size": 8}}, {"encoder_options": {"size": 12}},
            {"encoder_options": {"size": 20}}, {"encoder_options": {"size": 24}},
        ),
    ),
    # -- tier B: one setting each, shown as points
    "lewm": Arm("prediction", "B", "trained", ACTIONS, "conv", CONV, "frames_jepa", {"sigreg": 11.5}, stacked=True),
    "ema": Arm(
        "prediction", "B", "trained", ACTIONS, "conv", CONV, "frames_teacher", {"inverse_dynamics": 2.0, "ema": EMA},
        stacked=True,
    ),
    "ijepa": Arm("prediction", "B", "trained", "pictures", "vit", VIT, "ijepa", PREDICTOR, window=1),
    "nepa": Arm("prediction", "B", "trained", "pictures", "vit", VIT | {"causal": True}, "nepa", ALONE, window=1),
    "simclr": Arm("recognition", "B", "trained", "pictures", "conv", CONV, "simclr", ALONE | {"views": MILD}, window=7),
    "moco": Arm("recognition", "B", "trained", "pictures", "conv", CONV, "moco", ALONE | {"views": MILD}, window=7),
    "efficientnet": Arm(
        "recognition", "B", "pretrained", "", "efficientnet-lite0", {"resolution": 112, "block": 11}
    ),
    "mae": Arm(
        "reconstruction", "B", "trained", "pictures", "vit", VIT, "mae", {"width": 32, "depth": 1, "dynamics": 0.0},
        window=1,
    ),
    "reconstruction": Arm(
        "reconstruction", "B", "trained", ACTIONS, "conv", CONV, "reconstruction", {"shift": 0}, stacked=True
    ),
    "jepa_sigreg_vit": Arm("prediction", "B", "trained", ACTIONS, "vit", VIT, "frames_jepa", SIGREG, stacked=True),
    "vae_vit": Arm("reconstruction", "B", "trained", "pictures", "vit", VIT, "vae", SCALED, window=1),
    # -- bounds
    "random": Arm("floor", "-", "random", "", "conv", CONV),
    "supervised": Arm("ceiling", "-", "supervised", "labels", "conv", CONV),
    "state": Arm("ceiling", "-", "state", "labels", whiten=True),
}  # fmt: skip

TUNING_TASKS = ("two_rooms", "reacher")

# Changes to a task's search; the first is none.
SEARCHES: dict[str, tuple[dict[str, Any], ...]] = {
    "two_rooms": (
        {}, {"step_cost": 0.0}, {"step_cost": 0.02}, {"horizon": 16}, {"width": 48}, {"branches": 16},
    ),
    "reacher": ({}, {"horizon": 3}, {"horizon": 8}, {"init_std": 0.5}, {"samples": 256}, {"iterations": 10}),
    "table_edge": ({}, {"horizon": 4}, {"horizon": 8}, {"init_std": 0.7}, {"samples": 192}, {"iterations": 8}),
}  # fmt: skip
# Which of them all arms share (the first, unless another is better by a hundredth or more in the mean of all), and an
# arm's own where it did better with another than with that.
COMMON_SEARCH = {"two_rooms": 0, "reacher": 0, "table_edge": 4}
OWN_SEARCH = {
    ("two_rooms", "jepa_sigreg"): 2, ("two_rooms", "jepa_vicreg"): 5, ("two_rooms", "vjepa"): 1,
    ("two_rooms", "action_free"): 1, ("two_rooms", "dino"): 1, ("two_rooms", "dinov2"): 5, ("two_rooms", "vae"): 2,
    ("reacher", "jepa_vicreg"): 4, ("reacher", "vjepa"): 5, ("reacher", "action_free"): 4, ("reacher", "dino"): 4,
    ("reacher", "vae"): 1,
    ("table_edge", "vjepa"): 5, ("table_edge", "action_free"): 5, ("table_edge", "dinov2"): 0, ("table_edge", "vae"): 2,
}  # fmt: skip
SEARCHED = ("point", "flow")  # dynamics that are played with an arm's own search, too

# The decisive differences, named before the reported runs: name, (arm, dynamics) minus (arm, dynamics).
DECISIVE: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = (
    ("prediction (SIGReg) - recognition (DINO, in-domain)", ("jepa_sigreg", "point"), ("dino", "point")),
    ("prediction (SIGReg) - recognition (DINOv2, frozen)", ("jepa_sigreg", "point"), ("dinov2", "point")),
    ("prediction (SIGReg) - reconstruction (VAE)", ("jepa_sigreg", "point"), ("vae", "point")),
    ("prediction (SIGReg) - pixels", ("jepa_sigreg", "point"), ("pixels", "point")),
    ("actions: JEPA with them - without", ("jepa_sigreg", "point"), ("action_free", "point")),
    ("flow - point, on JEPA (SIGReg)", ("jepa_sigreg", "flow"), ("jepa_sigreg", "point")),
    ("flow on DINOv2 - point on JEPA (SIGReg)", ("dinov2", "flow"), ("jepa_sigreg", "point")),
    ("flow on V-JEPA - flow on DINOv2", ("vjepa", "flow"), ("dinov2", "flow")),
)
