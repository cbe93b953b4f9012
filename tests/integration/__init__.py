"""Everything together: clients, real prefork workers and a real Redis."""
