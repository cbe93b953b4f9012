"""Random input from outside: each input is accepted or refused, in limited time and memory."""
