"""The upgrade gate: compare two stacks, find the release that broke a clause, and judge stacks that are not installed."""
