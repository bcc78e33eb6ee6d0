"""What a user got wrong, said in one line."""


class InputError(ValueError):
    """A flag, file or dataset that cannot be used; the message is one line for the user.

    It names the flag or file, what was wrong, and what would be right. Programs print it after
    their own name and exit with code 2.
    """
