"""Small built-in environments: Two Rooms, TableEdge, Fork; only MujocoTableEdge needs another package."""
