"""Several processes: ranks forked from a warm parent or started by torchrun, their limits and their locks."""
