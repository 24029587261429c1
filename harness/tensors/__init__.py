"""Names, shards and checksums of tensors."""
