"""The register: each clause joined with the tests that judge it and with what makes it fail."""
