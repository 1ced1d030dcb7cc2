"""The links of the kernel: facts, operations in batches, netlink and TUN devices."""
