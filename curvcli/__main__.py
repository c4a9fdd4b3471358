"""`python -m curvcli` is `curv`."""

from curvcli.cli.main import console_main

if __name__ == "__main__":
    console_main()
