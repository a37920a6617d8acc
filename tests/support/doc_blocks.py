"""The code blocks of Markdown pages, the commands in them, and a process that runs them. Also the script of that process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPERATORS = {"&&", "||", ";", "|"}


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line of its first code, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def at(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page."""
    pattern = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [Block(page, text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in pattern.finditer(text)]


def substituted(page_code: list[Block], substitutions: dict[str, str]) -> list[Block]:
    """The blocks with other names of models, devices and repositories. Each of the old names must occur."""
    text = "\n".join(block.text for block in page_code)
    missing = [name for name in substitutions if name not in text]
    assert not missing, f"{page_code[0].page} no longer has {missing}"
    for old, new in substitutions.items():
        page_code = [replace(block, text=block.text.replace(old, new)) for block in page_code]
    return page_code


def commands(text: str) -> list[list[str]]:
    """The simple commands of shell lines, without comments, redirections and assignments of variables."""
    result: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word not in OPERATORS:
                command.append(word)
                continue
            while command and re.match(r"[A-Z_]+=", command[0]):
                del command[0]
            if command:
                result.append(command)
            command = []
    return result


def run_blocks(
    page_code: list[Block], folder: Path, before: dict[str, str] | None = None, skip: tuple[str, ...] = ()
) -> str:
    """Run Python blocks, and the persres commands of shell blocks, in one fresh process in ``folder``; returns its output.

    ``before`` is code to run before a block, by a text that the block holds. Commands that match a regular expression of ``skip``
    are left out. Raises AssertionError with the output if a step fails.
    """
    steps = []
    for block in page_code:
        steps += [{"at": block.at, "python": code} for text, code in (before or {}).items() if text in block.text]
        if block.language == "python":
            steps.append({"at": block.at, "python": block.text})
        elif block.language == "sh":
            steps += [
                {"at": block.at, "persres": words[1:]}
                for words in commands(block.text)
                if words[0] == "persres" and not any(re.match(pattern, " ".join(words)) for pattern in skip)
            ]
    (folder / "steps.json").write_text(json.dumps(steps))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PERSRES_CACHE": str(folder / "cache"), "DVC_NO_ANALYTICS": "1"}
    call = [sys.executable, "-P", __file__, "steps.json"]
    ran = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout + ran.stderr


def _run_steps(path: str) -> None:
    from persres.cli.main import main

    namespace = {"__name__": "__main__"}
    for step in json.loads(Path(path).read_text()):
        print("running", step["at"], file=sys.stderr)
        if "python" in step:
            exec(compile(step["python"], step["at"], "exec"), namespace)
        elif (code := main(step["persres"])) != 0:
            sys.exit(f"{step['at']}: persres {shlex.join(step['persres'])}: exit code {code}")


if __name__ == "__main__":
    _run_steps(sys.argv[1])
