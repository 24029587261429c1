"""The register: each clause with the tests that judge it and with what makes it fail, as a page and on the screen."""
