"""kvmd: a host agent for virtual machines declared as files."""

__version__ = "0.1.0"
