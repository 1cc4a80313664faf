"""One file per command; `bmft_cli.main` imports a command's module when it is called."""
