"""JEPAMPC in RL Baselines3 Zoo: its command line, and settings by environment.

    pip install "jepa-rl[zoo]"
    python examples/rl_zoo3_train.py
    python examples/rl_zoo3_train.py --env Pendulum-v1 --n-timesteps 5000 --seed 1

Takes the options of the zoo's train script, except those for other algorithms and hyperparameter search. Writes
runs/rl_zoo3_train/: results.json, the zoo's folders (model, settings, evaluations) and TensorBoard events. This file is
also the settings file: the zoo reads ``hyperparams``.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # classic-control environments draw with SDL; no window is needed

# By environment, otherwise "default". The zoo passes keys that it does not know to JEPAMPC.
hyperparams = {
    "Pendulum-v1": {
        "policy": "MlpPolicy",
        "n_timesteps": 5_000,
        "gamma": 0.98,
        "learning_starts": 500,
    },
    "default": {
        "policy": "CnnPolicy",
        "n_timesteps": 12_000,
        "gamma": 0.98,
        "learning_starts": 500,
        "env_wrapper": [{"jepa_rl.envs.PixelObservation": {"size": 64, "frames": 3}}],
    },
}


def main() -> None:
    from rl_zoo3 import ALGOS
    from rl_zoo3.train import train

    from jepa_rl.agents import JEPAMPC

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--algo", choices=["jepa_mpc"], default="jepa_mpc")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--env-kwargs", nargs="+", default=[])
    parser.add_argument("--eval-env-kwargs", nargs="+", default=[])
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("runs/rl_zoo3_train"))
    own, given = parser.parse_known_args()
    if {"-optimize", "--optimize-hyperparameters"} & set(given):
        parser.error("the zoo knows no hyperparameters of JEPAMPC to search through")
    out = own.log_folder
    drawn = "render_mode:'rgb_array'"  # the zoo takes these for evaluation, too, unless that has its own
    options = ["--algo", own.algo, "--env", own.env, "--conf-file", __file__, "--log-folder", str(out)]
    options += ["--tensorboard-log", str(out / "logs"), "--env-kwargs", drawn, *own.env_kwargs]
    if own.eval_env_kwargs:
        options += ["--eval-env-kwargs", drawn, *own.eval_env_kwargs]
    if own.quick:
        options += ["--n-timesteps", "60", "--hyperparams", "learning_starts:30", "--eval-freq", "50"]
        options += ["--eval-episodes", "1"]
    ALGOS["jepa_mpc"] = JEPAMPC  # registers it with the zoo
    sys.argv = [sys.argv[0], *options, *given]
    train()
    runs = sorted((out / "jepa_mpc").glob("*_*"), key=lambda path: path.stat().st_mtime)
    files = sorted(path.name for path in runs[-1].iterdir())
    (out / "results.json").write_text(json.dumps({"run": str(runs[-1]), "files": files}, indent=2))
    print(f"wrote {runs[-1]}/")


if __name__ == "__main__":
    main()
