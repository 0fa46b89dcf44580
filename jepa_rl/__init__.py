"""Latent world models for reinforcement learning."""

from jepa_rl.version import __version__

__all__ = ["__version__"]
