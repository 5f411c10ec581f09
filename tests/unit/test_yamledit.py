"""Additions to files that a person wrote: only lines are added."""

import difflib

import pytest

from venice.paths import resource
from venice.yamledit import CannotEditError, add_hosts, add_to_list

LAB = (resource("inventory") / "lab" / "hosts.yml").read_text()
VARS = (resource("inventory") / "lab" / "group_vars" / "all.yml").read_text()


def added(before: str, after: str) -> list[str]:
    """The lines that `after` has more; fails when it lost one."""
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:2] in ("+ ", "- ")]
    assert not [line for line in lines if line.startswith("- ")], after
    return [line[2:] for line in lines]


def test_host_of_a_group_that_is_there_goes_to_its_end_before_the_next_comment():
    text = (
        "all:\n  children:\n    kafka:\n      hosts:\n        a:\n        b:  # second\n\n"
        "    # the registry\n    connect:\n      hosts:\n        a:\n"
    )
    after = add_hosts(text, "kafka", ["c", "d"])
    assert after == text.replace("        b:  # second\n", "        b:  # second\n        c:\n        d:\n")


def test_new_group_in_the_shipped_inventory():
    assert added(LAB, add_hosts(LAB, "spark", ["lab-1", "lab-2"])) == [
        "    spark:",
        "      hosts:",
        "        lab-1:",
        "        lab-2:",
    ]


def test_lists_in_every_form():
    assert "\nvenice_pipelines: [bus_locations, orders]\n" in add_to_list(VARS, "venice_pipelines", "orders")
    assert add_to_list("a: []  # none\n", "a", "x") == "a: [x]  # none\n"
    assert add_to_list("a: [\n  one, # 1\n  two, # 2\n]\n", "a", "x") == "a: [\n  one, # 1\n  two, x, # 2\n]\n"
    assert add_to_list("a:\n- one\n# more\n", "a", "x") == "a:\n- one\n- x\n# more\n"
    assert add_to_list("a:\n    - one  # 1\n\nb: 2\n", "a", "x") == "a:\n    - one  # 1\n    - x\n\nb: 2\n"
    assert add_to_list("a:   # none yet\n", "a", "x") == "a: [x]   # none yet\n"
    assert add_to_list("a: ~\n", "a", "x") == "a: [x]\n"
    assert add_to_list("# nothing\nb: 1", "a", "x") == "# nothing\nb: 1\na: [x]\n"
    assert add_to_list("", "a", "x") == "a: [x]\n"
    assert add_to_list("all:\n  vars:\n    a: [y]\n", "a", "x") == "all:\n  vars:\n    a: [y, x]\n"
    assert add_to_list("a: []\n", "a", "yes") == "a: ['yes']\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all:\n  hosts:\n    a:\n", "all:\n  hosts:\n    a:\n  children:\n    connect:\n      hosts:\n        a:\n"),
        ("all:\n  children:\n    connect:\n", "all:\n  children:\n    connect:\n      hosts:\n        a:\n"),
        ("all:\n  children:\n    connect:\n      hosts:  # none\n", "all:\n  children:\n    connect:\n      hosts:  # none\n        a:\n"),
        (
            "all:\n  children:\n    connect:\n      vars: {x: 1}\n",
            "all:\n  children:\n    connect:\n      hosts:\n        a:\n      vars: {x: 1}\n",
        ),
        ("kafka:\n    hosts:\n        a:\n", "kafka:\n    hosts:\n        a:\nconnect:\n    hosts:\n        a:\n"),
        ("connect: {hosts: {b: {}}}\n", "connect: {hosts: {b: {}, a: {}}}\n"),
        (
            "all:\n  children:\n    kafka: {hosts: {b: }}\n",
            "all:\n  children:\n    kafka: {hosts: {b: }}\n    connect:\n      hosts:\n        a:\n",
        ),
        (
            "all:\n  vars:\n    note: >\n      folded\n      text\n\n",
            "all:\n  vars:\n    note: >\n      folded\n      text\n  children:\n    connect:\n      hosts:\n        a:\n\n",
        ),
        ("all:\r\n  children:\r\n    connect:\r\n", "all:\r\n  children:\r\n    connect:\r\n      hosts:\r\n        a:\r\n"),
        (
            "---\nall:\n  children:\n    x: !vault |\n      abc\n    connect:",
            "---\nall:\n  children:\n    x: !vault |\n      abc\n    connect:\n      hosts:\n        a:\n",
        ),
    ],
)
def test_hosts_in_every_form(text, expected):
    assert add_hosts(text, "connect", ["a"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[connect]\na\n",
        '{"all": {"children": {}}}',
        "all: [a]\n",
        "a: 1\n---\nb: 2\n",
        "all:\n  children:\n    connect:\n      hosts: ~\n",
        "\tx",
    ],
)
def test_what_has_no_obvious_place_is_refused(text):
    with pytest.raises(CannotEditError):
        add_hosts(text, "connect", ["a"])


def test_a_template_is_no_list():
    with pytest.raises(CannotEditError, match="not a plain list"):
        add_to_list("a: '{{ b }}'\n", "a", "x")
