"""docs/faults.md: every row names tests that exist, or says why it has none."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNHELD = 1  # rows without a test; make it smaller, never larger


def rows() -> list[list[str]]:
    lines = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "fault" and set(row[0]) != {"-"}]


@cache
def defined_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist_or_says_why_not() -> None:
    assert len(rows()) >= 50
    unheld = 0
    for row in rows():
        assert len(row) == 3, row
        if row[2].startswith("no test: "):
            unheld += 1
            continue
        named = row[2].split(", ")
        for name in named:
            assert re.fullmatch(r"test_\w+\.py::test_\w+", name), name
            file, test = name.split("::")
            assert test in defined_in(file), name
    assert unheld == UNHELD


def unproven(
    collected: dict[str, bool], chosen: set[str], outcomes: dict[str, set[str]], marked: str, elsewhere: set[str]
) -> list[str]:
    """What a run whose tests all passed leaves open of docs/faults.md; tests/conftest.py asks at the end of each run.

    Args:
        collected: file.py::test of everything collected -> whether it has the marker "faults".
        chosen: of these, what the run was to run.
        outcomes: how the cases of each test ended.
        marked: "faults", "not faults" (the two commands, which run all between them), or anything else: a selection.
        elsewhere: files that another run holds.
    """
    named = {name for row in rows() if not row[2].startswith("no test: ") for name in row[2].split(", ")}
    named = {name for name in named if name.split("::")[0] not in elsewhere}
    known, found = named & collected.keys(), []
    if {name.split("::")[0] for name in named} <= {name.split("::")[0] for name in collected}:  # no single files
        found += [f"{name} was not collected" for name in named - known]
    if marked in ("faults", "not faults"):
        found += [f"{name} was left out" for name in known - chosen if collected[name] == (marked == "faults")]
    ends = {name: outcomes.get(name, {"did not run"}) for name in named & chosen}
    return sorted(found + [f"{name}: {', '.join(sorted(end))}" for name, end in ends.items() if end != {"passed"}])


def test_a_named_test_that_did_not_run_or_pass_is_found() -> None:
    named = [row[2].split(", ")[0] for row in rows() if not row[2].startswith("no test: ")]
    first, second, third = list(dict.fromkeys(named))[:3]
    collected = {first: False, second: True, third: False}
    passed = {first: {"passed"}, third: {"passed"}}
    assert unproven(collected, {first, third}, passed, "not faults", set()) == []
    assert unproven(collected, {first}, passed, "not faults", set()) == [f"{third} was left out"]
    assert unproven(collected, {first}, passed, "slow", set()) == []
    assert unproven(collected, set(), {}, "faults", set()) == [f"{second} was left out"]
    assert unproven(collected, {first, third}, {first: {"passed", "skipped"}}, "not faults", set()) == sorted(
        [f"{first}: passed, skipped", f"{third}: did not run"]
    )
    everything = {f"{name.split('::')[0]}::test_other": False for row in rows() for name in row[2].split(", ")}
    lost = unproven(everything | collected, set(everything) | {first, third}, passed, "not faults", set())
    assert f"{first} was not collected" not in lost
    assert all(line.endswith(" was not collected") for line in lost)
    assert len(lost) > 20
    file = next(name for name in named if name.split("::")[0] != first.split("::")[0]).split("::")[0]
    rest = {name: marked for name, marked in everything.items() if not name.startswith(file)}
    assert not unproven(rest, set(rest), {name: {"passed"} for name in rest}, "not faults", set())  # single files
    others = unproven(rest, set(rest), {name: {"passed"} for name in rest}, "not faults", {file})
    assert others
    assert not any(line.startswith(file) for line in others)
