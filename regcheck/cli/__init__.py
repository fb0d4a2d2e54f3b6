"""The command line: arguments in, text out, exceptions to exit codes. Nothing else prints."""

from regcheck.cli.main import commands, exit_code, main

__all__ = ["commands", "exit_code", "main"]
