"""A stand-in for `conda`, for Snakemake: creates environments from one local channel, with py-rattler as the solver.

`conda_stand_in.py PREFIX CHANNEL ARGUMENT…`: PREFIX is the stand-in's own installation (its `bin/activate` activates),
CHANNEL a folder of packages that stands for every channel that an environment names. What stands under `pip:` is taken
from the same channel, as packages named `pip-NAME`.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import yaml

VERSION = "conda 25.1.0"


def specs(environment: Path) -> list[str]:
    """List what an environment asks for, pip's part included."""
    wanted = []
    for item in yaml.safe_load(environment.read_text())["dependencies"]:
        wanted += [f"pip-{pin}" for pin in item["pip"]] if isinstance(item, dict) else [item]
    return wanted


async def create(environment: Path, prefix: Path, own: Path, channel: str) -> None:
    """Solve an environment and install it."""
    from rattler import install, solve

    records = await solve([channel], specs(environment), platforms=["noarch"])
    await install(records, prefix, cache_dir=own / "pkgs", show_progress=False)


def main() -> int:
    """Answer as conda does."""
    own, channel, *arguments = sys.argv[1:]
    match arguments:
        case ["--version"]:
            print(VERSION)
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": own, "platform": "linux-64"}))
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["clean", "-y", *_]:
            pass
        case ["env", "create", *options]:
            environment, prefix = (Path(options[options.index(name) + 1]) for name in ("--file", "--prefix"))
            try:
                asyncio.run(create(environment, prefix, Path(own), Path(channel).as_uri()))
            except Exception as error:  # py-rattler raises several kinds
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                return 1
        case _:
            print(f"the stand-in does not know: conda {' '.join(arguments)}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # py-rattler (0.28) has threads of its own that can crash the interpreter while it shuts down: it is not shut down.
    os._exit(code)
