"""Methods of others, fitted to the same cache: rows of the contest."""
