"""Run the benchmarks: `python -m bench [NAME] [--quick]`, all of NAMES without one."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec

NAMES = ("extraction", "basis", "selection", "app", "steering", "usefulness")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Ratios against named rivals.")
    parser.add_argument("name", nargs="?", choices=NAMES, help="one benchmark; all by default")
    parser.add_argument("--quick", action="store_true", help="small inputs: whether it works, not how fast it is")
    arguments = parser.parse_args()
    for name in [arguments.name] if arguments.name else NAMES:
        if find_spec(f"bench.{name}") is None:
            print(f"{name}: skipped, there is no bench/{name}.py")
            continue
        import_module(f"bench.{name}").main(arguments.quick)


if __name__ == "__main__":
    main()
