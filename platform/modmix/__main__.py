"""`python -m modmix` is `modmix`."""

from modmix.cli import main

if __name__ == "__main__":
    main()
