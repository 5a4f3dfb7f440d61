"""`python -m gatito` is `gatito`."""

from gatito.cli import main

if __name__ == "__main__":
    main()
