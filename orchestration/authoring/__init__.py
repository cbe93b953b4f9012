"""The interface for an application's own operations: `@operation` and `Context`."""
