"""Whatever comes in from outside, made up at random: only clean errors, in bounded time and memory."""
