"""What acts: planners that search in the learned dynamics, and the agents built on them."""

from jepa_rl.agents.cem import CEM

__all__ = ["CEM"]
