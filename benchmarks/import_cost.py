"""What `import octavo; octavo.quantize` costs over `import torch`: CPU seconds, resident MB, and what it pulls in.

Run: python benchmarks/import_cost.py [--json] [--repeats N]

Each repeat is a fresh process; medians are reported. Byte code is kept in a temporary folder, whatever
PYTHONDONTWRITEBYTECODE says: the first run compiles every source, as the first import after an editable install does,
and is reported alone. Correctness first: no framework and none of the heavier base dependencies may be imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

SCRIPT = """
import json, sys, time
import torch
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
start, before = time.process_time(), resident()
import octavo
octavo.quantize
result = {"cpu_seconds": time.process_time() - start, "megabytes": resident() - before}
unwanted = ("transformers", "datasets", "accelerate", "pydantic", "rich", "typer", "yaml")
result["imported"] = [name for name in unwanted if name in sys.modules]
print(json.dumps(result))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=9)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as byte_code:
        first = run(byte_code)
        runs = [run(byte_code) for _ in range(options.repeats)]
    imported = {name for one in runs for name in one["imported"]}
    if imported:
        sys.exit(f"`octavo.quantize` imports {', '.join(sorted(imported))}")
    row = {
        "statement": "import octavo; octavo.quantize",
        "cpu_seconds": statistics.median(one["cpu_seconds"] for one in runs),
        "cpu_seconds_compiling": first["cpu_seconds"],
        "megabytes": statistics.median(one["megabytes"] for one in runs),
    }
    if options.json:
        print(json.dumps(row, indent=2))
    else:
        print(
            f"{row['statement']}: {row['cpu_seconds']:.3f} CPU s, {row['megabytes']:.1f} MB over `import torch`; "
            f"{row['cpu_seconds_compiling']:.3f} CPU s the first time, which compiles"
        )


def run(byte_code: str) -> dict[str, float | list[str]]:
    """Measure in a fresh process, which keeps compiled sources in the folder `byte_code`."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": byte_code, "PYTHONDONTWRITEBYTECODE": ""}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
