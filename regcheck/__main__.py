"""`python -m regcheck`."""

from regcheck.cli import main

if __name__ == "__main__":
    main()
