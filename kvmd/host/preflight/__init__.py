"""What kvmd needs of a host: what was found, why it matters, and what to type."""
