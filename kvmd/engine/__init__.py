"""The engine: one cycle after another, and the threads that carry out operations."""
