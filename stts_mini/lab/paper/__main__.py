"""`python -m stts_mini.lab.paper`: see `reproduce.py`."""

from stts_mini.lab.paper.reproduce import main

if __name__ == "__main__":
    main()
