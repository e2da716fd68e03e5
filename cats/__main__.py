"""`python -m cats` runs the command `cats`."""

from cats.nmt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
