"""Plans as data: model, validation, policy, loading and compilation."""
