"""docs/faults.md: every row names tests that exist, or says why it has none."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import COLLECTED, OUTCOMES, plain_name

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


@pytest.mark.parametrize("at_length", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_every_named_test_ran(at_length: bool, request: pytest.FixtureRequest) -> None:
    """Of those that this run was to run (conftest.py puts this test last); the two commands run all between them."""
    named = {name for row in rows() if not row[2].startswith("no test: ") for name in row[2].split(", ")}
    files = {name.split("::")[0] for name in named}
    if files <= {name.split("::")[0] for name in COLLECTED}:  # no single files were asked for
        assert named <= COLLECTED.keys()
    chosen = {plain_name(item.nodeid) for item in request.session.items}
    if not request.config.getoption("keyword"):
        for name in named & COLLECTED.keys():
            assert COLLECTED[name] != at_length or name in chosen, f"{name} was left out"
    for name in named & chosen:
        assert OUTCOMES.get(name) == {"passed"}, f"{name}: {OUTCOMES.get(name, 'did not run')}"
