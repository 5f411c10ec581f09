"""Images on their way to hosts: built or pulled here when need be, then as layer files."""

import contextlib
import fcntl
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from venice import paths
from venice.cluster import Cluster, component_roles
from venice.errors import VeniceError

if TYPE_CHECKING:
    from venice.images.export import Exported


def lacking(cluster: Cluster, host: str) -> list[str]:
    """Images that a host's containers want and its engine does not have, as the facts tell."""
    wanted = {container["image"] for container in cluster.desired(host)["containers"]}
    return sorted(wanted - set(cluster.facts.get(host, {}).get("images", {})))


def variables(cluster: Cluster, host: str, refs: Collection[str]) -> dict[str, str]:
    """The inventory's variables that name these images, by reference: `a_image or b_image`."""
    found: dict[str, list[str]] = {ref: [] for ref in refs}
    for name in (name for role in component_roles().values() for name in role.options if name.endswith("_image")):
        if (ref := cluster.var(host, name)) in found:
            found[ref].append(name)
    return {ref: " or ".join(names) for ref, names in found.items() if names}


@contextlib.contextmanager
def provide(
    wanted: Collection[str], report: Callable[[str], None], named: Mapping[str, str] | None = None
) -> Iterator[dict[str, "Exported"]]:
    """The images' layer files by reference, to be sent inside the `with`; builds or pulls what this machine lacks.

    Many may ask at once (one process per host): one works, the others then find it done. What no image of today has is
    removed from the cache, unless somebody is sending just then. Raises VeniceError. `named`: what `variables` says of them.
    """
    # Only when something is to be sent: Docker's library takes a fifth of a second to load.
    import docker.errors

    from venice.images import refs
    from venice.images.build import build, client
    from venice.images.export import export, ids, in_use, prune

    with (paths.cache_dir() / ".images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own = {ref: name for name, ref in refs().items()}
        build([own[ref] for ref in wanted if ref in own], report)
        engine = client()
        for ref in (r for r in wanted if r not in own):
            try:
                engine.images.get(ref)
            except docker.errors.ImageNotFound:
                report(f"pulling {ref}")
                try:
                    engine.images.pull(ref)
                except docker.errors.APIError as error:
                    raise VeniceError(
                        f"{ref}: this machine's Docker engine has no such image and cannot pull it: {error.explanation}",
                        unavailable(ref, (named or {}).get(ref, "")),
                    ) from error
        # before the export: from then until all is sent, nobody may remove anything
        prune(set().union(*(ids(engine, ref) for ref in {*own, *wanted})))
        with in_use():
            exported = {ref: export(engine, ref) for ref in wanted}
            fcntl.flock(lock, fcntl.LOCK_UN)  # the next may ask while this one sends
            yield exported


def unavailable(ref: str, variable: str) -> str:
    """What to do when a public image cannot be had."""
    name = f"check {variable} in the inventory" if variable else "check the name"
    return (
        f"{name}; or bring it: `docker pull {ref} && docker save {ref} | gzip > image.tgz` where it can be had, `docker load -i image.tgz` "
        "here; or name a copy of it in a registry that this machine reaches (with venice_image_registry, that the hosts reach)"
    )
