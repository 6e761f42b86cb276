"""Build the kernels: `python -m conceptome_kernels`, which the set-up of the environment calls."""

import time

from conceptome_kernels.build import VARIANTS, BuildError, build
from conceptome_kernels.loader import KernelError, variant


def main() -> None:
    """Build the variant that this machine will use, and say so; a machine without a compiler is no error."""
    started = time.monotonic()
    try:
        name = variant()
        if name not in VARIANTS:
            print(f"  kernels: none, as asked for ({name})")
            return
        path = build(name)
        print(f"  kernels: built {name} in {time.monotonic() - started:.0f} s ({path})")
    except BuildError as error:
        print(f"  kernels: {error}: the torch path will be used")
    except KernelError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
