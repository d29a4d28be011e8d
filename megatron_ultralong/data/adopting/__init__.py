"""Token files that others wrote, megatron-core's and datatrove's, become a corpus where they are."""
