"""What is trained: named, drawn and lived runs, what happens to their checkpoints, and the cache of traces."""
