"""A request that is turned down, in the Hub's words; and a store that cannot answer it."""

from zoo.errors import IntegrityError


class DamagedError(IntegrityError):
    """The server's own store is not as it left it: no request is to blame."""


class RefusedError(Exception):
    """Becomes an answer with ``X-Error-Code`` and ``X-Error-Message``, which the client reads."""

    def __init__(
        self, status: int, message: str, *, code: str = "", commit: str = "", url: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        # A name from outside, as it may be repeated here, can be more than UTF-8 can say.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        self.commit = commit
        """For a missing file: the commit that lacks it."""
        self.url = url
        """For a repository that exists already: where."""

    @property
    def headers(self) -> dict[str, str]:
        # A header is one line of ASCII, whatever name the message repeats.
        line = self.message.encode("ascii", "backslashreplace").decode()
        line = "".join(c if c.isprintable() else " " for c in line)
        values = {
            "X-Error-Code": self.code,
            "X-Error-Message": line[:500].strip(),
            "X-Repo-Commit": self.commit,
        }
        return {key: value for key, value in values.items() if value}


def no_repository(name: str, *, status: int = 404) -> RefusedError:
    return RefusedError(status, f"Repository not found: {name}", code="RepoNotFound")


def no_revision(revision: str) -> RefusedError:
    return RefusedError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def no_entry(path: str, commit: str) -> RefusedError:
    return RefusedError(404, f"Entry not found: {path}", code="EntryNotFound", commit=commit)
