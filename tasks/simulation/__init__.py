"""The sandbox: runs in memory, without servers."""
