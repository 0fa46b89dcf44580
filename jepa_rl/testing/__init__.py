"""The contracts as tests: subclass one in a test file, say how to make your part, and run pytest.

::

    from jepa_rl.testing import DynamicsContract

    class TestMyDynamics(DynamicsContract):
        def make_dynamics(self):
            return MyDynamics(latent_dim=8, action_dim=2).eval()

Every test builds the part anew. The contracts themselves are described in ``jepa_rl.types``.
"""

from jepa_rl.testing.checks import assert_raises, seeded
from jepa_rl.testing.dynamics import COMPASS, DynamicsContract, PointMass, TrainableDynamicsContract
from jepa_rl.testing.encoders import EncoderContract, encode
from jepa_rl.testing.objectives import ObjectiveContract
from jepa_rl.testing.planners import PlannerContract
from jepa_rl.testing.processes import gradient_difference

__all__ = [
    "COMPASS",
    "DynamicsContract",
    "EncoderContract",
    "ObjectiveContract",
    "PlannerContract",
    "PointMass",
    "TrainableDynamicsContract",
    "assert_raises",
    "encode",
    "gradient_difference",
    "seeded",
]
