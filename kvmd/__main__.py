"""``python -m kvmd`` and the command ``kvmd``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from kvmd.cli.main import cli

    cli()


if __name__ == "__main__":
    main()
