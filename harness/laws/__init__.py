"""Laws: pure functions from traces to a verdict, used by hand-picked and by generated scenarios alike."""
