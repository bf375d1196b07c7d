"""The documents, and the programs that draw their charts and make their pages."""
