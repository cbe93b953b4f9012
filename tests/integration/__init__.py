"""End-to-end tests: clients, real prefork workers and a real Redis."""
