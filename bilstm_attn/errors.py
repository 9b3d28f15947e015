"""The one error a user can cause and mend."""


class UserError(Exception):
    """A mistake that one line can explain: what must hold, what came, what to do.

    Scripts print it without a traceback and leave with status 2.
    """
