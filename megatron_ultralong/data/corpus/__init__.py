"""A tokenized corpus on disk: megatron-core's IndexedDataset, the sources of its documents, the manifest."""
