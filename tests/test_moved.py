"""What version 0.1.0 offered is still there under its names; what moved says so once, and what did not says nothing."""

import json
import subprocess
import sys

import pytest

from jepa_rl._moved import MOVED

# What the README, the examples and the documentation of version 0.1.0 import, and what its packages offered.
NAMES = {
    "jepa_rl": "PRESETS ActionSpec Batch Episode EpisodeStore Objective Plan Preset TrainConfig TrainResult "
    "WindowSampler WorldModel WorldModelConfig WorldSpec __version__ fit preset world_model_evaluation",
    "jepa_rl.agents": "CEM ICEM JEPAMPC MPPI CategoricalCEM FlowPlanner FlowProposals GradientPlanner InverseModel "
    "InverseModelAgent MPCAgent MPCState ResumableRun TreeSearch fit_flow_proposals fit_inverse_model",
    "jepa_rl.agents.baselines": "SHORT_DQN BaselineRun LeanCnnPolicy SaveAtEvaluation load_saved train_baseline",
    "jepa_rl.agents.evaluation": "EvaluationCallback add_animation",
    "jepa_rl.agents.jepa_mpc": "JEPAMPC PRESETS ResumableRun jepa_mpc_preset",
    "jepa_rl.agents.online_latents": "LatentReplayBuffer OnlineWorldModel latent_policy_kwargs",
    "jepa_rl.costs": "GoalCost",
    "jepa_rl.data": "EpisodeStore WindowSampler",
    "jepa_rl.data.latents": "LatentEpisodes",
    "jepa_rl.diagnostics": "Probe fit_linear_probe fit_mlp_probe r2_score wilson_interval",
    "jepa_rl.dynamics": "EnsembleDynamics FlowDynamics GRUDynamics HeldActions MLPDynamics MixtureDynamics "
    "energy_score",
    "jepa_rl.dynamics.rivals": "EnsembleDynamics MixtureDynamics",
    "jepa_rl.encoders": "ConvEncoder FramesEncoder KeypointEncoder",
    "jepa_rl.envs": "ActionRepeat ForkEnv GoalObservation LatentObservation PixelObservation RandomPolicy "
    "SmoothRandomPolicy TableEdgeEnv TwoRoomsEnv TwoRoomsVectorEnv VecLatentObservation VectorLatentObservation "
    "action_spec collect register_dm_control register_envs table_edge_rules world_spec wrap",
    "jepa_rl.envs.table_edge": "TableEdgeEnv",
    "jepa_rl.envs.two_rooms": "TwoRoomsVectorEnv",
    "jepa_rl.envs.two_rooms_rules": "TwoRoomsDynamics",
    "jepa_rl.files": "open_run remove_run write_atomic",
    "jepa_rl.heads": "PictureDecoder",
    "jepa_rl.memory": "keep_freed_memory",
    "jepa_rl.objectives": "EB_JEPA EMA LEWM Objective covariance inverse_dynamics prediction sigreg straightness "
    "time_similarity variance",
    "jepa_rl.refine": "REFINE refine_dynamics",
    "jepa_rl.risk": "CVaR Risk expected_cost",
    "jepa_rl.training": "TrainConfig fit",
    "jepa_rl.types": "Cost Dynamics Planner",
    "jepa_rl.world_model": "WorldModel WorldModelConfig",
}
# Runs on its own, since a process imports a module, and is warned of it, once.
SCRIPT = """
import importlib, json, sys, warnings

def imported(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(name)
    return module, [(w.category.__name__, str(w.message)) for w in caught]

def offers(name, part):
    module = importlib.import_module(name)
    try:
        return hasattr(module, part) or bool(importlib.import_module(f"{name}.{part}"))
    except ImportError:
        return False

moved, names = json.load(sys.stdin)
found = {"quiet": {name: imported(name)[1] for name in ("jepa_rl", "jepa_rl.agents", "jepa_rl.envs")}}
found["loud"], found["same"] = {}, {}
for old, new in moved.items():
    module, first = imported(old)
    found["loud"][old] = [first, imported(old)[1]]
    found["same"][old] = module is importlib.import_module(new)
warnings.simplefilter("ignore")
found["missing"] = [f"{m}.{n}" for m, all in names.items() for n in all.split() if not offers(m, n)]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    told = json.dumps([MOVED, NAMES])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=told, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.split("FOUND")[1])


def test_importing_the_rooms_warns_of_nothing(found):
    assert found["quiet"] == {"jepa_rl": [], "jepa_rl.agents": [], "jepa_rl.envs": []}


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_moved_imports_and_warns_once(found, old):
    first, again = found["loud"][old]
    # A package that moved as well may be imported for the first time with it, and warns for itself.
    told = [text for kind, text in first if kind == "FutureWarning" and text.startswith(f"{old} is now ")]
    assert len(told) == 1
    assert all(MOVED[old] in text and "0.3.0" in text for text in told)
    assert again == [] and found["same"][old]


def test_what_was_imported_from_0_1_0_is_there(found):
    assert found["missing"] == []
