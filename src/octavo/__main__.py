"""`python -m octavo` is the command line."""

from octavo.cli.app import main

if __name__ == "__main__":
    main()
