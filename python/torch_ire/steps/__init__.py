"""One step of an optimizer: its schedule, its tensor lists, its operator calls, and the same step in a graph."""
