"""Context parallelism: the zig-zag layout, block attention kernels, the P2P ring, the all-to-all."""
