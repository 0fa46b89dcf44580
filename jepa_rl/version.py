"""The one place that holds the version (semantic: MAJOR.MINOR.PATCH)."""

__version__ = "0.2.0"
