"""Where a pipeline can come from besides Venice itself: a git repository at one commit, or a folder.

Nothing of a source is run: files are read out of git's objects (no checkout, so no hooks, filters, submodules) or out of the
folder, and links are followed only inside the pipeline.
"""

import os
import posixpath
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from venice.errors import InputError, UnreachableError, VeniceError
from venice.pipeline import FILE

_GIT_SECONDS = 300
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[\w.-]+@[\w.-]+:")  # https://..., git@host:...
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_FULL = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_IGNORED = {"__pycache__", ".git", ".DS_Store"}
_NO_CONTACT = ("could not resolve", "unable to access", "could not read from remote", "connection", "timed out", "no route to host")
_REFUSED = ("does not appear to be a git repository", "not found", "returned error: 4", "permission denied")


@dataclass(frozen=True)
class Source:
    """A pipeline's files and where they are from. `commit` is empty for a plain folder, `path` for a repository's root."""

    name: str
    url: str
    commit: str
    path: str
    files: dict[str, bytes]

    def __str__(self) -> str:
        return f"{self.url}{'#' + self.commit[:12] if self.commit else ''}{':' + self.path if self.path else ''}"


def is_source(text: str) -> bool:
    """True for what is written as an address or a path, and not as a name."""
    return bool(_REMOTE.match(text)) or "/" in text or "#" in text or text in (".", "..") or text.startswith("-")


def fetch(text: str, commit: str | None = None) -> Source:
    """Reads `URL#COMMIT:SUBFOLDER`, both optional, or a folder.

    `commit` is a full or abbreviated commit, a tag or a branch; what it stands for now is in the result. Raises InputError for
    what cannot be meant, UnreachableError when the repository's host does not answer.
    """
    address, _, fragment = text.partition("#")
    reference, _, path = fragment.partition(":")
    if commit and reference:
        raise InputError(f"two commits are given: {reference} and {commit}", "give one of them")
    reference = commit or reference
    path = path.strip("/")
    if reference and not _REFERENCE.fullmatch(reference):
        raise InputError(f"{reference!r} is no commit, tag or branch")
    if ".." in PurePosixPath(path).parts:
        raise InputError(f"{path} leads out of the repository")
    local = Path(address).expanduser()
    if not _REMOTE.match(address) and not reference and local.is_dir() and not (local / "HEAD").is_file():
        return _folder(local / path, str(Path(address) / path))
    return _git(_checked(address), reference, path)


def _checked(address: str) -> str:
    """The address as git gets it. Refuses what git would take for an option, run as a program, or write into its command line."""
    if address.startswith("-"):
        raise InputError(f"{address!r} is no address of a git repository")
    if not _REMOTE.match(address):
        if not Path(address).expanduser().is_dir():
            raise InputError(
                f"there is no folder {address}", "give a folder with a pipeline.yml, or a git URL such as https://host/repo.git"
            )
        return str(Path(address).expanduser().resolve())
    parts = urlsplit(address)
    if "://" in address and parts.scheme not in ("https", "http", "ssh", "git", "file"):
        raise InputError(f"{parts.scheme}:// is not supported", "use https://, ssh:// or file://")
    if parts.scheme and parts.password:
        raise InputError(
            f"a password is part of the address of {parts.hostname}{parts.path}",
            "leave it out: git's credential helper or an SSH key gives it, and it is written down nowhere",
        )
    return address


# ---- folders --------------------------------------------------------------------------------------------------------


def _folder(folder: Path, shown: str) -> Source:
    root = folder.resolve()
    if not (root / FILE).is_file():
        found = sorted(p.parent.relative_to(root).as_posix() for p in root.glob(f"**/{FILE}")) if root.is_dir() else []
        raise _no_pipeline(shown, [f"{shown}/{name}" for name in found])
    files = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if _IGNORED & set(relative.parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise _leaves(shown, str(relative))
        if path.is_symlink() and path.is_dir():
            raise InputError(f"{shown}: {relative} is a link to a folder", "put the files themselves there")
        if path.is_file():
            files[relative.as_posix()] = path.read_bytes()
        elif not path.is_dir():
            raise InputError(f"{shown}: {relative} is neither a file nor a folder")
    return Source(_name(root.name, shown), shown, "", "", files)


# ---- git ------------------------------------------------------------------------------------------------------------


def _git(address: str, reference: str, path: str) -> Source:
    with tempfile.TemporaryDirectory(prefix="venice-git-") as folder:
        git = _Repository(folder, address)
        git.run("init", "--quiet", "--bare", ".")
        commit = git.fetch(reference)
        entries = git.entries(commit)
        if path:
            pipelines = [path] if f"{path}/{FILE}" in entries else []
        elif FILE in entries:
            pipelines = [""]
        else:
            pipelines = sorted(posixpath.dirname(p) for p in entries if posixpath.basename(p) == FILE)
        if len(pipelines) != 1:
            among = sorted(posixpath.dirname(p) for p in entries if posixpath.basename(p) == FILE)
            raise _no_pipeline(f"{address} at {commit[:12]}", [f"{address}#{commit[:12]}:{name}" for name in among])
        [path] = pipelines
        stem = posixpath.basename(path) or re.split(r"[/:]", address.rstrip("/"))[-1].removesuffix(".git")
        return Source(_name(stem, address), address, commit, path, git.files(entries, path))


@dataclass(frozen=True)
class _Repository:
    """A bare repository in a temporary folder, which holds what was fetched from `address`."""

    folder: str
    address: str

    def run(self, *arguments: str) -> bytes:
        # What git's own environment says of another repository must not lead there; which protocols may be used is said here.
        environment = {k: v for k, v in os.environ.items() if k not in _ELSEWHERE}
        environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file", "LC_ALL": "C"}
        settings = ["-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false", "-c", "gc.auto=0"]
        try:
            done = subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_GIT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise VeniceError("git is not installed here", "apt-get install git") from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{self.address}: git got no further within {_GIT_SECONDS} s") from error
        if done.returncode:
            raise _GitError(done.stderr.decode(errors="replace"))
        return done.stdout

    def fetch(self, reference: str) -> str:
        """Brings one commit here, with its files; returns its full name."""
        try:
            listed = self.run("ls-remote", "--", self.address).decode().splitlines()
        except _GitError as error:
            raise self._refusal(error) from error
        refs = {name: commit for commit, name in (line.split("\t") for line in listed)}
        names = (f"refs/tags/{reference}", f"refs/heads/{reference}") if reference else ("HEAD",)
        named = next((name for name in names if name in refs), None)
        if not named and not reference:
            raise InputError(f"{self.address} is empty: it has no commit", "push a pipeline to it first")
        if not named and not re.fullmatch(r"[0-9a-f]{4,64}", reference):
            tags = sorted(n.removeprefix("refs/tags/") for n in refs if n.startswith("refs/tags/") and not n.endswith("^{}"))
            raise InputError(f"{self.address} has no commit, tag or branch {reference}", f"tags: {', '.join(tags[-10:]) or 'none'}")
        wanted = named or reference
        if named or _FULL.fullmatch(reference):
            try:
                self.run("fetch", "--quiet", "--no-tags", "--depth", "1", "--", self.address, wanted)
                return self._commit("FETCH_HEAD")
            except _GitError:
                pass  # a server that gives only whole branches, or has no such commit: the next way tells
        try:
            self.run("fetch", "--quiet", "--", self.address, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        except _GitError as error:
            raise self._refusal(error) from error
        try:
            return self._commit(wanted)
        except _GitError as error:
            ambiguous = "ambiguous" in str(error)
            raise InputError(
                f"{self.address} has {'several commits' if ambiguous else 'no commit'} {reference}",
                "give more of its digits" if ambiguous else "is it pushed, and on a branch or tag?",
            ) from error

    def _commit(self, name: str) -> str:
        return self.run("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}").decode().strip()

    def entries(self, commit: str) -> dict[str, tuple[str, str]]:
        """Path -> (mode, object) of all files of a commit."""
        found = {}
        for line in self.run("ls-tree", "-r", "-z", "--full-tree", commit).decode(errors="surrogateescape").split("\0"):
            if line:
                about, path = line.split("\t", 1)
                mode, _, name = about.split()
                found[path] = (mode, name)
        return found

    def files(self, entries: dict[str, tuple[str, str]], path: str) -> dict[str, bytes]:
        """Contents of the files below `path`, by their paths there."""
        prefix = f"{path}/" if path else ""
        inside = {p.removeprefix(prefix): entry for p, entry in entries.items() if p.startswith(prefix)}
        files = {}
        for relative, (mode, name) in inside.items():
            if {"..", ""} & set(relative.split("/")) or _IGNORED & set(relative.split("/")):
                continue
            if mode == "160000":
                raise InputError(f"{self.address}: {relative} is a submodule, which is not followed", "put the files themselves there")
            content = self.run("cat-file", "blob", name)
            if mode == "120000":
                target = posixpath.normpath(posixpath.join(posixpath.dirname(relative), content.decode(errors="replace")))
                if target not in inside or inside[target][0] == "120000":
                    raise _leaves(self.address, relative)
                content = self.run("cat-file", "blob", inside[target][1])
            files[relative] = content
        return files

    def _refusal(self, error: "_GitError") -> VeniceError:
        said = str(error).lower()
        answered = any(words in said for words in _REFUSED)
        kind = UnreachableError if not answered and any(words in said for words in _NO_CONTACT) else InputError
        last = [line for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in last if line.startswith("fatal:")), last[-1]).removeprefix("fatal: ")
        return kind(f"{self.address}: {reason}", "try `git ls-remote` with this address; it must work without being asked for a password")


class _GitError(Exception):
    pass


_ELSEWHERE = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
}


# ---- messages -------------------------------------------------------------------------------------------------------


def _name(stem: str, shown: str) -> str:
    if not _NAME.fullmatch(stem):
        raise InputError(f"{shown}: {stem!r} can't be the name of a pipeline", "rename the folder: letters, digits, _ - .")
    return stem


def _leaves(shown: str, path: str) -> InputError:
    return InputError(f"{shown}: {path} is a link that leaves the pipeline's folder", "put the file itself there")


def _no_pipeline(shown: str, found: list[str]) -> InputError:
    if not found:
        return InputError(f"{shown}: there is no {FILE}", f"a pipeline is a folder with a {FILE} (docs/pipelines.md)")
    return InputError(f"{shown}: {'several pipelines' if len(found) > 1 else 'the pipeline is elsewhere'}", "name one: " + ", ".join(found))
