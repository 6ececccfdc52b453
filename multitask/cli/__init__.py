"""The command line: options, progress, tables, exit codes."""
