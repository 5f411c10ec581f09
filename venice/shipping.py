"""Images on their way to hosts: built or pulled here when need be, then as layer files."""

import fcntl
from collections.abc import Callable, Iterable

import docker.errors

from venice import images, paths
from venice.errors import VeniceError


def provide(wanted: Iterable[str], report: Callable[[str], None]) -> dict[str, images.Exported]:
    """The images' layer files by reference; builds Venice's own and pulls public ones that this machine lacks.

    Many may ask at once (one process per host): one works, the others then find it done. Raises VeniceError.
    """
    with (paths.cache_dir() / ".images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own = {ref: name for name, ref in images.refs().items()}
        images.build([own[ref] for ref in wanted if ref in own], report)
        engine = images.client()
        for ref in (r for r in wanted if r not in own):
            try:
                engine.images.get(ref)
            except docker.errors.ImageNotFound:
                report(f"pulling {ref}")
                try:
                    engine.images.pull(ref)
                except docker.errors.APIError as error:
                    raise VeniceError(
                        f"{ref} cannot be pulled: {error.explanation}", "check the name, or load it here: docker load"
                    ) from error
        return {ref: images.export(ref) for ref in wanted}
