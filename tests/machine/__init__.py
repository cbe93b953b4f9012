"""The servers that the tests need, on a machine that has none of them. Standard library only."""
