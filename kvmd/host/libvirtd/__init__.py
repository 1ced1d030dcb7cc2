"""What libvirt knows and does: connections, facts, acts on domains, networks and pools, and what goes on beside."""
