"""Tensors of a model: canonical names, shards on several ranks, and checksums."""
