"""Small worlds that need no other package: Two Rooms, TableEdge, a fork."""
