"""Agents that learn in the manner of Stable-Baselines3: JEPAMPC, and its own algorithms on latents."""
