"""Control: what reward adds to a world model."""
