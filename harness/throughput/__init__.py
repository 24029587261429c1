"""How fast a run is, and what it costs: counters that repeat exactly, and times that are compared in pairs.

README.md beside this file describes the method and has the tables.
"""
