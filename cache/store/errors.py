"""The one exception that stores raise about what they find on disk."""

from __future__ import annotations


class InputError(ValueError):
    """A file or parameter breaks a rule: the text has the rule, the value found, the way out."""
