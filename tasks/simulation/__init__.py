"""The sandbox, which runs plans in memory, without servers."""
