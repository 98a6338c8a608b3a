"""`python -m stts_mini.lab.speed`: see `bench.py`."""

from stts_mini.lab.speed.bench import main

if __name__ == "__main__":
    main()
