"""docs/faults.md: every row names tests that exist, or says why it has none."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNHELD = 3  # rows without a test; make it smaller, never larger


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
