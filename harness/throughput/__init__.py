"""How fast a run is, and what it costs: counters that are exact, and times that are compared in pairs."""
