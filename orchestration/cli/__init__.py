"""The command line: click commands that call the client and print its answers."""
