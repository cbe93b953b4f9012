"""The records in Redis, and the Lua scripts that change them."""
