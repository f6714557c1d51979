"""What a database says when two transactions want the same."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, IntegrityError

__all__ = ["lost_against_another", "waited_too_long"]

_LOST = {"40001", "40P01", "1205", "1213"}
"""PostgreSQL's and MySQL's codes for a transaction that is to be repeated."""
_NO_LOCK_IN_TIME = "55P03"
"""PostgreSQL's, for a lock that was not to be had within ``lock_timeout``."""


def lost_against_another(error: DBAPIError) -> bool:
    """Whether the transaction failed because of another one, and is to be repeated."""
    if isinstance(error, IntegrityError):
        return True  # somebody has written the same XCom or note meanwhile
    code = _code(error)
    return code in _LOST or "database is locked" in code


def waited_too_long(error: DBAPIError) -> bool:
    """Whether somebody else held a lock for longer than was to be waited."""
    return _code(error) == _NO_LOCK_IN_TIME


def _code(error: DBAPIError) -> str:
    """What the driver gives as the reason: psycopg2, psycopg, MySQL's drivers, sqlite3."""
    raw = error.orig
    if raw is None:
        return ""
    return str(getattr(raw, "pgcode", None) or getattr(raw, "sqlstate", None) or (raw.args[:1] or [""])[0])
