"""The Lua scripts that concern no single run; the header of each names its keys."""
