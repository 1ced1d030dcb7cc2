"""The command line: one module per family of commands; data on stdout, messages on stderr."""
