"""How much of data/, checkpoint and generation code the tests run, and which error paths they do not.

Usage: python -m coverage run -m pytest -m "not slow and not faults" && python -m tests.error_paths

An error path is a ``raise`` or a line of an ``except`` block. Prints lines and branches of each file, then every error
path that no test took; exits with 1 where less than 90 % of one of them is covered.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FILES = (
    "data/*.py", "models/checkpoint.py", "models/export.py", "models/resume.py", "models/saving.py",
    "configs/whole_file.py", "configs/run_folder.py", "configs/shipped.py", "scripts/generate_masks.py",
    "scripts/mask_files.py", "scripts/seeded.py", "scripts/ranks.py", "scripts/export.py", "scripts/run.py",
)  # fmt: skip
ENOUGH = 90.0


def error_lines(source: str) -> set[int]:
    """First lines of the statements that raise, or that stand in an ``except`` block."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            found.add(node.lineno)
        elif isinstance(node, ast.ExceptHandler):
            found |= {inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.stmt)}
    return found


def measured() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "coverage.json"
        json_command = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(out), "--include", ",".join(FILES)]
        subprocess.run([sys.executable, "-m", "coverage", "combine", "-q", "--append"], check=False)
        subprocess.run(json_command, check=True)
        answer: dict[str, Any] = json.loads(out.read_text())
        return answer


def main() -> None:
    found = measured()
    taken = total = 0
    missed = []
    for name, about in sorted(found["files"].items()):
        lines = Path(name).read_text().splitlines()
        errors = error_lines("\n".join(lines)) & {*about["executed_lines"], *about["missing_lines"]}
        never = sorted(errors & set(about["missing_lines"]))
        taken, total = taken + len(errors) - len(never), total + len(errors)
        share = about["summary"]["percent_covered"]
        print(f"{name:28}{share:6.1f} % of lines and branches, {len(errors) - len(never)} of {len(errors)} error lines")
        missed += [f"  {name}:{number}: {lines[number - 1].strip()}" for number in never]
    print("no test takes:", *missed or ["  (none)"], sep="\n")
    everything, errors_taken = found["totals"]["percent_covered"], 100 * taken / total
    print(f"all: {everything:.1f} % of lines and branches; error lines: {taken} of {total}, {errors_taken:.1f} %")
    raise SystemExit(min(everything, errors_taken) < ENOUGH)


if __name__ == "__main__":
    main()
