"""Zip files of Stable-Baselines3, read without executing anything in them."""

from jepa_rl.agents.sb3.saved.loading import SafeLoading, load_agent, rebuilt

__all__ = ["SafeLoading", "load_agent", "rebuilt"]
