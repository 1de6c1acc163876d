"""The error that says what a user can mend; no other import, so that every room can raise it."""


class UserError(Exception):
    """A mistake in what the user gave: the message names the file, the record and the mend."""
