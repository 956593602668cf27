"""`python -m modmix` is `modmix`."""

from modmix.cli import command

if __name__ == "__main__":
    command()
