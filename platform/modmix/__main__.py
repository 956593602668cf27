"""`python -m modmix` is `modmix`."""

from modmix.cli.main import command

if __name__ == "__main__":
    command()
