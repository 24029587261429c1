"""Many stacks judged clause by clause: which releases work together."""
