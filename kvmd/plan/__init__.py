"""Planning, pure: what differs between the specs and the host, and the operations that end the difference."""
