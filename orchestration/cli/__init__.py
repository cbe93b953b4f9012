"""The command line: click groups over the client; nothing is decided here."""
