"""JEPAMPC in RL Baselines3 Zoo: its command line, and settings by environment.

    pip install "jepa-rl[zoo]"
    python examples/rl_zoo3_train.py
    python examples/rl_zoo3_train.py --env Pendulum-v1 --n-timesteps 5000 --seed 1

Takes every option of the zoo's train script. Writes runs/rl_zoo3_train/: results.json, the zoo's folders (model,
settings, evaluations) and TensorBoard events. This file is its own settings file, too: the zoo reads ``hyperparams``.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole and its kin draw with SDL; no window is needed

# By environment; anything else takes "default". The zoo passes on what it does not know to JEPAMPC.
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
        "env_kwargs": {"render_mode": "rgb_array"},
        "env_wrapper": [{"jepa_rl.envs.PixelObservation": {"size": 64, "frames": 3}}],
    },
}


def main() -> None:
    from rl_zoo3 import ALGOS
    from rl_zoo3.train import train

    from jepa_rl.agents import JEPAMPC

    out = Path("runs/rl_zoo3_train")
    given = [argument for argument in sys.argv[1:] if argument != "--quick"]
    if "--quick" in sys.argv:
        given += ["--n-timesteps", "60", "--hyperparams", "learning_starts:30", "--eval-freq", "50"]
        given += ["--eval-episodes", "1"]
    if not any(argument == "--env" or argument.startswith("--env=") for argument in given):
        given += ["--env", "CartPole-v1"]
    ALGOS["jepa_mpc"] = JEPAMPC  # the registration; the zoo offers it like its own
    defaults = [
        "--algo",
        "jepa_mpc",
        "--conf-file",
        __file__,
        "-f",
        str(out),
        "--tensorboard-log",
        str(out / "logs"),
    ]
    defaults += ["--eval-env-kwargs", "render_mode:'rgb_array'"]  # env_kwargs are for training alone
    sys.argv = [sys.argv[0], *defaults, *given]
    train()
    runs = sorted((out / "jepa_mpc").glob("*_*"), key=lambda path: path.stat().st_mtime)
    files = sorted(path.name for path in runs[-1].iterdir())
    (out / "results.json").write_text(json.dumps({"run": str(runs[-1]), "files": files}, indent=2))
    print(f"wrote {runs[-1]}/")


if __name__ == "__main__":
    main()
