"""Errors that a user sees as one clear message, never as a traceback."""


class VeniceError(Exception):
    """Something the user can understand and mend.

    `message` says what was wrong and where (host, file, key), `remedy` what to do next. `exit_code` is the process's exit
    code: 1 failure while running, 2 wrong input (nothing was touched), 3 a host or service did not answer.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "", exit_code: int | None = None):
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class InputError(VeniceError):
    """Wrong input: found before any host was touched."""

    exit_code = 2


class UnreachableError(VeniceError):
    """A host or a service did not answer."""

    exit_code = 3
