"""The one place that holds the version (semantic: MAJOR.MINOR.PATCH)."""

__version__ = "0.1.0"
