"""`python -m stts_mini.lab.speed`: see `bench.py`; with --pays, `pays.py`."""

import sys

from stts_mini.lab.speed import bench, pays

if __name__ == "__main__":
    pays.main() if "--pays" in sys.argv else bench.main()
