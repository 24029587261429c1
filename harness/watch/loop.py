"""WatchLoop: the same checks for a loop without transformers.Trainer, as a context manager."""
