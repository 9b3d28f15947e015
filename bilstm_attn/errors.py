"""The exception for mistakes that a user can fix."""


class UserError(Exception):
    """A mistake of the user, in one line: what must hold, what came, what to do.

    Commands print it without a traceback and exit with status 2.
    """
