"""Render reports that were read from JSON: as a page, for CI systems, over time."""
