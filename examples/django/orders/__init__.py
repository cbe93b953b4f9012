"""Orders: a model, the operations of its steps, and the plan of an order."""
