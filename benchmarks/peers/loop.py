"""One case of `benchmarks.loop`, by its number, in a process of its own."""

import sys

from benchmarks import loop

if __name__ == "__main__":
    loop.measured([*loop.CASES][int(sys.argv[1])])
