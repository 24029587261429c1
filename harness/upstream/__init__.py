"""What goes to upstream: a standalone script for a fault, the text of a report, and the table of known defects."""
