"""The command line of bmft, one file per command; installed as the package `bmft_cli`."""
