"""The one exception that a user can cause, the nearest valid name, and the exceptions of others in words."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the command line prints its one sentence and exits with code 2."""


def nearest(name: str, valid: Iterable[str], what: str) -> str:
    """Return the sentence for an unknown `name`, with the nearest of the `valid` names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    hint = f"did you mean {close[0]!r}?" if close else f"valid: {listed or 'none'}"
    return f"unknown {what} {name!r}; {hint}"


def reason_of(error: Exception) -> str:
    """Why something cannot be read, in words where the exception's own would be those of Python."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or 'a file'} is missing"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__
