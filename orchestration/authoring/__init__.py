"""What an application writes: operations of its own, and their context."""
