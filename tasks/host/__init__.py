"""Access to the worker's machine: its engine, programs, files, locks and the policy that bounds them."""
