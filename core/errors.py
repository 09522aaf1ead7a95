"""The one exception that is meant for the person at the keyboard."""


class BasiscopeError(ValueError):
    """What went wrong, where (file, row, column, option) and what would fix it, in one sentence."""
