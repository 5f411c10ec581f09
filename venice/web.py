"""What a cluster offers to a browser. A component's role says it: `web: {name: ..., port: ..., path: ...}` in its description."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from venice.cluster import Cluster, component_roles
from venice.errors import InputError, UnreachableError

_SECONDS = 3.0


@dataclass(frozen=True)
class Page:
    """An address to open: `name` is what people call it, `component` whose it is."""

    name: str
    component: str
    instance: str
    host: str
    url: str

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return asdict(self)


def pages(cluster: Cluster) -> list[Page]:
    """All that can be opened, in the order of the components' dependencies."""
    found = []
    for component in cluster.order:
        if web := component_roles()[component].description.get("web"):
            for i in (i for i in cluster.instances(component) if web["port"] in i.ports):
                found.append(Page(web["name"], component, i.name, i.host, f"http://{i.endpoint(web['port'])}{web['path']}"))
    return found


def find(cluster: Cluster, name: str) -> list[Page]:
    """The pages called `name`, or of the component `name`; `name@host` only the one there. InputError lists what there is."""
    what, _, host = name.partition("@")
    word = what.replace("_", "-")
    named = [p for p in pages(cluster) if word in (p.name, p.component.replace("_", "-"), p.instance)]
    found = [p for p in named if host in ("", p.host)]
    if found:
        return found
    if named:
        raise InputError(f"{cluster.name}: {what} does not run on {host}", f"it runs on {', '.join(p.host for p in named)}")
    there = ", ".join(dict.fromkeys(p.name for p in pages(cluster))) or "nothing"
    for component, role in component_roles().items():
        web = role.description.get("web", {})
        if word in (web.get("name"), component.replace("_", "-")) and not cluster.instances(component):
            raise InputError(
                f"{cluster.name}: nothing runs {component}: its group has no hosts",
                f"`venice install {component}` adds it; what can be opened now: {there}",
            )
    raise InputError(f"{cluster.name}: there is no {what!r} to open", f"what can be opened: {there}")


def answering(found: list[Page]) -> Page:
    """The first of these pages that answers. UnreachableError says why none does, instance by instance."""
    import httpx

    def ask(page: Page) -> str:
        try:
            answer = httpx.get(page.url, timeout=_SECONDS, trust_env=False)
        except httpx.HTTPError as error:
            return (
                f"{type(error).__name__}: {error}" if not isinstance(error, httpx.TimeoutException) else f"no answer within {_SECONDS:g} s"
            )
        return f"it answers {answer.status_code}" if answer.status_code >= 500 else ""

    with ThreadPoolExecutor(len(found)) as pool:
        failures = list(pool.map(ask, found))
    for page, failure in zip(found, failures, strict=True):
        if not failure:
            return page
    raise UnreachableError(
        "\n".join(f"{p.instance} on {p.host} ({p.url}): {failure}" for p, failure in zip(found, failures, strict=True)),
        f"`venice status` shows what runs; `venice logs {found[0].component.replace('_', '-')}` why; `venice up` starts what is stopped",
    )
