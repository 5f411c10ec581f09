"""How Ansible reads an inventory's files for Venice. Imported by `venice.cluster`, which names Ansible's configuration first."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible._internal._datatag._tags import Origin
from ansible.errors import AnsibleError
from ansible.inventory import manager
from ansible.parsing.dataloader import DataLoader

from venice.errors import InputError
from venice.paths import shown

_YAML = (".yml", ".yaml", ".json")


class Loader(DataLoader):
    """Ansible's reader of files, with texts for some of them (absolute paths) in place of what is on the disk."""

    def __init__(self, texts: Mapping[Path, str]):
        super().__init__()
        self._texts = {str(path): text for path, text in texts.items()}

    def get_text_file_contents(self, file_name: str, encoding: str | None = None) -> str:
        text = self._texts.get(self.path_dwim(file_name))
        return super().get_text_file_contents(file_name, encoding) if text is None else Origin(path=file_name).tag(text)


def written_in(value: Any) -> tuple[Path, int | None] | None:
    """File and line (from 1) in which a variable's value stands; None for what no file says."""
    origin = Origin.get_tag(value)
    return (Path(origin.path), origin.line_num) if origin and origin.path else None


class _Failures:
    """Stands in for Ansible's display: keeps why each of its parsers failed, which are three warnings for one mistake."""

    def __init__(self, display: Any):
        self._display = display
        self.found: list[AnsibleError] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def error_as_warning(self, msg: str | None, exception: AnsibleError, **_: Any) -> None:
        self.found.append(exception)


@contextmanager
def one_message(inventory: Path) -> Iterator[None]:
    """What Ansible refuses while it reads an inventory becomes one InputError that names file, line and reason."""
    display = manager.display
    manager.display = failures = _Failures(display)
    try:
        yield
    except AnsibleError as error:
        where, why = _reason(inventory, error, failures.found)
        raise InputError(f"{where}: {why}", "mend the file; `ansible-inventory -i FILE --list` reads it the same way") from error
    finally:
        manager.display = display


def _reason(inventory: Path, error: AnsibleError, failures: list[AnsibleError]) -> tuple[str, str]:
    """Of the parsers' reasons the one for the file's form; a line is known when it is no YAML at all."""
    if not failures:
        # a file of variables; Ansible's error around the parser's has lost the place
        origins = [getattr(e, "obj", None) for e in (error, error.__cause__, error.__context__)]
        path, line = next(((o.path, o.line_num) for o in origins if getattr(o, "path", None)), (None, None))
        return (f"{shown(Path(path))}:{line}" if path and line else str(path or inventory)), str(error)
    file = Path(str(error).rpartition("inventory source ")[2])
    place = str(inventory) if inventory.is_file() else str(inventory / file.name)
    # in the order in which Ansible asks them: what makes an inventory by a plugin's settings, YAML, INI
    yaml = [failure for failure in failures[:-1] if "no root 'plugin' key" not in str(failure)]
    chosen = (yaml or failures)[0] if file.suffix in _YAML else failures[-1]
    line = getattr(chosen.obj, "line_num", None)
    why = str(chosen).replace("\"<class 'ansible.module_utils._internal._datatag._AnsibleTaggedList'>\" instead", "a list")
    return f"{place}:{line}" if line else place, why
