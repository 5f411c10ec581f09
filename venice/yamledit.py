"""Additions to a YAML file that a person wrote: lines are put in, every other character stays.

The places come from the parser; the result is parsed again and must be the old document with exactly the addition.
"""

from collections.abc import Iterator
from typing import Any

import yaml

# group -> its hosts, wherever in the document: the path of keys to a group's body
_Path = tuple[str, ...]


class CannotEditError(Exception):
    """The file is not of a form in which the addition has an obvious place."""


def add_hosts(text: str, group: str, hosts: list[str]) -> str:
    """An Ansible inventory in YAML with these hosts in `group`, which is made below `all` when it is not there."""
    root = _compose(text)
    groups = {path: body for path, body in _groups(root) if path[-1] == group}
    # of several places, the one that has hosts already
    path = next((p for p, b in groups.items() if _get(b, "hosts")), next(iter(groups), None))
    if path is None:
        root_keys = [key.value for key, _ in root.value]
        path = ("all", "children", group) if "all" in root_keys or not root_keys else (group,)
    return _checked(text, _put(text, root, (*path, "hosts"), hosts), (*path, "hosts"), dict.fromkeys(hosts))


def add_to_list(text: str, key: str, item: str, line: int | None = None) -> str:
    """The document with `item` at the end of the list `key`, at its top or among the variables of a group.

    `line` (from 1) is where that list begins, for documents that have the key more than once. A missing key is put at the end.
    """
    root = _compose(text)
    found = [(path, node) for path, node in _variables(root) if path[-1] == key]
    if line is not None and len(found) > 1:
        found = [(path, node) for path, node in found if node.start_mark.line + 1 == line]
    if len(found) > 1:
        raise CannotEditError(f"{key} is there more than once")
    if not found:
        return _checked(text, _line_end(text) + f"{key}: [{_word(item)}]\n", (key,), [item])
    path, node = found[0]
    if isinstance(node, yaml.SequenceNode) and node.flow_style:
        changed = _into_flow(text, node, _word(item))
    elif isinstance(node, yaml.SequenceNode):
        changed = _after(text, _end(node), [" " * node.start_mark.column + f"- {_word(item)}"])
    elif _is_null(node):
        at = node.start_mark.index
        changed = f"{text[:at]}{'' if node.value else ' '}[{_word(item)}]{text[at + len(node.value) :]}"
    else:
        raise CannotEditError(f"{key} is not a plain list")
    return _checked(text, changed, path, [item])


# ---- the parsed document --------------------------------------------------------------------------------------------


def _compose(text: str) -> yaml.MappingNode:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CannotEditError("it is not YAML") from error
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
    if not isinstance(root, yaml.MappingNode):
        raise CannotEditError("it is not YAML with keys at its top")
    if root.flow_style:
        raise CannotEditError("it is in JSON's form")
    return root


def _get(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((k, v) for k, v in pairs if k.value == key), None)


def _groups(node: yaml.Node, path: _Path = ()) -> Iterator[tuple[_Path, yaml.Node]]:
    for key, body in node.value if isinstance(node, yaml.MappingNode) else []:
        yield (*path, key.value), body
        if children := _get(body, "children"):
            yield from _groups(children[1], (*path, key.value, "children"))


def _variables(root: yaml.MappingNode) -> Iterator[tuple[_Path, yaml.Node]]:
    yield from (((key.value,), value) for key, value in root.value)
    for path, body in _groups(root):
        if found := _get(body, "vars"):
            yield from (((*path, "vars", key.value), value) for key, value in getattr(found[1], "value", []) if isinstance(key, yaml.Node))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _end(node: yaml.Node) -> int:
    """Where the last thing in a node ends; a block's own end mark is only where the next thing begins."""
    while not isinstance(node, yaml.ScalarNode) and node.value and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node.end_mark.index


# ---- putting in -----------------------------------------------------------------------------------------------------


def _put(text: str, root: yaml.MappingNode, path: _Path, hosts: list[str]) -> str:
    """The text with hosts at `path`; what of the path is missing is made where it ends."""
    node, depth, key = root, 0, None
    while depth < len(path) and (found := _get(node, path[depth])):
        (key, node), depth = found, depth + 1
    missing = path[depth:]
    if isinstance(node, yaml.MappingNode) and node.flow_style and node is not root:
        flow = ", ".join(f"{_word(h)}: {{}}" for h in hosts)
        for word in reversed(missing):
            flow = f"{word}: {{{flow}}}"
        return _into_flow(text, node, flow)
    if not (isinstance(node, yaml.MappingNode) or _is_null(node)):
        raise CannotEditError(f"{'.'.join(path[:depth])} is not a plain mapping")
    step = _step(root)
    if isinstance(node, yaml.MappingNode) and node.value:
        # `hosts` comes before what a group has else; everything other at the end
        at, column = (key.end_mark.index if missing == ("hosts",) else _end(node)), node.value[0][0].start_mark.column
    elif key is not None:
        at, column = key.end_mark.index, key.start_mark.column + step
    else:
        at, column = len(text), 0
    lines = [" " * (column + step * n) + f"{_word(word)}:" for n, word in enumerate(missing)]
    lines += [" " * (column + step * len(missing)) + f"{_word(host)}:" for host in hosts]
    return _after(text, at, lines)


def _step(root: yaml.MappingNode) -> int:
    """By how many columns the document's mappings are indented."""
    for _, value in root.value:
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            return value.value[0][0].start_mark.column or 2
    return 2


def _after(text: str, at: int, lines: list[str]) -> str:
    """The text with whole lines after the one in which `at` is. A block scalar ends where the next line begins: not there."""
    at = len(text[:at].rstrip())
    newline = "\r\n" if "\r\n" in text else "\n"
    end = text.find("\n", at)
    head, tail = (_line_end(text), "") if end < 0 else (text[: end + 1], text[end + 1 :])
    return head + "".join(line + newline for line in lines) + tail


def _line_end(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _into_flow(text: str, node: yaml.Node, item: str) -> str:
    if not node.value:
        at = node.start_mark.index + 1
        return text[:at] + item + text[at:].lstrip(" ")
    last = node.value[-1]
    at = _end(last[1] if isinstance(last, tuple) else last)
    return f"{text[:at]}, {item}{text[at:]}"


def _word(text: str) -> str:
    """A text as YAML writes it in a flow: quoted only where it must be."""
    return yaml.safe_dump([text], default_flow_style=True, width=1000).strip()[1:-1]


# ---- the proof ------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads any tag (`!vault`) as the text or structure that it is put on."""


def _any(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_sequence(node, True) if isinstance(node, yaml.SequenceNode) else loader.construct_mapping(node, True)


_Loader.add_multi_constructor("!", _any)


def _checked(before: str, after: str, path: _Path, addition: dict[str, None] | list[str]) -> str:
    """`after`, when it says what `before` says and the addition at `path`; else CannotEditError."""
    try:
        wanted, found = (yaml.load(text, Loader=_Loader) or {} for text in (before, after))  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        raise CannotEditError("its form leaves no obvious place for it") from error
    at = wanted
    for word in path[:-1]:
        if at.get(word) is None:
            at[word] = {}
        at = at[word]
    old = at.get(path[-1])
    at[path[-1]] = (old or []) + addition if isinstance(addition, list) else (old or {}) | addition
    place = found
    for word in path:
        place = place.get(word) if isinstance(place, dict) else None
    # the order of hosts counts: nodes get their ids by it
    if _plain(wanted) != _plain(found) or list(at[path[-1]]) != list(place or []):
        raise CannotEditError("its form leaves no obvious place for it")
    return after


def _plain(value: Any) -> Any:
    """For comparisons: an empty mapping and nothing say the same of a host or group."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()} or None
    return [_plain(item) for item in value] if isinstance(value, list) else value
