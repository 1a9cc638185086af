"""What callbacks raise before the first step."""


class SetupError(ValueError):
    """What a callback needs is missing or does not fit; the message says in one sentence what, and the remedy."""
