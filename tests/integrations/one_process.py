"""Run with a trainer's Python: several command lines in one process, because imports take most of the time of each.

one_process.py COMMANDS     a JSON list of argument lists, each starting with a script's path, or with -m and a module
"""

from __future__ import annotations

import json
import runpy
import sys


def main(commands: list[list[str]]) -> None:
    for command in commands:
        print("one process:", *command, flush=True)
        module = command[0] == "-m"
        sys.argv = command[1:] if module else list(command)
        try:
            if module:
                runpy.run_module(command[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
