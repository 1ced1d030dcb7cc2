"""Changes that could cut the host off: recorded, watched, proven, or put back exactly."""
