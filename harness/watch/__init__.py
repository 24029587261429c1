"""Watch: judges a user's own training run while it runs, on the real model.

    trainer = Trainer(..., callbacks=[harness.Watch()])

1. `callback.Watch` is told the Trainer's events, `own_loop.WatchLoop` those of a loop without one.
2. `run.Run` keeps what both know of the run (`seen.Seen`), decides which steps are sampled, and calls the checks.
3. Each check (`check.Check`) judges one thing, by the laws of `harness.laws` where they fit, and writes into `book.Book`.
4. `certificate` says at the end what was checked, how often, and what was not.

Nothing here draws a random number, changes a tensor, or lets an error of its own reach the run. README.md has more.
"""
