"""`python -m longshore.orchestration.cli`."""

from longshore.orchestration.cli.main import main

main()
