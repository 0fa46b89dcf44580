"""Names of version 0.1.0 give what they gave, and say what they are called now."""

import importlib

import pytest

RENAMED = [
    ("jepa_rl", "PRESETS", "WORLD_PRESETS"),
    ("jepa_rl.presets", "PRESETS", "WORLD_PRESETS"),
    ("jepa_rl.agents.sb3.jepa_mpc", "PRESETS", "JEPA_MPC_PRESETS"),
    ("jepa_rl.agents.sb3.jepa_mpc.presets", "PRESETS", "JEPA_MPC_PRESETS"),
    ("jepa_rl.envs", "VecLatentObservation", "SB3LatentObservation"),
    ("jepa_rl.envs.wrappers.sb3_latent", "VecLatentObservation", "SB3LatentObservation"),
]


@pytest.mark.parametrize(("module", "old", "new"), RENAMED)
def test_a_renamed_object_is_found_under_its_old_name(module, old, new):
    module = importlib.import_module(module)
    with pytest.warns(FutureWarning, match=f"{old} is now {module.__name__}.{new}"):
        assert getattr(module, old) is getattr(module, new)


@pytest.mark.parametrize("module", sorted({module for module, _, _ in RENAMED}))
def test_a_name_that_never_was_is_an_attribute_error(module):
    module = importlib.import_module(module)
    with pytest.raises(AttributeError, match=f"{module.__name__}' has no attribute 'never'"):
        module.never  # noqa: B018
