"""Two stacks compared: environments, what each side does in them, what differs, and which release it was."""
