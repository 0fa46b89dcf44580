"""Zip files of Stable-Baselines3, read without executing anything in them."""

from jepa_rl.agents.sb3.saved.loading import SafeLoading, in_words, load_agent, rebuilt
from jepa_rl.agents.sb3.saved.zip_file import SavedZip

__all__ = ["SafeLoading", "SavedZip", "in_words", "load_agent", "rebuilt"]
