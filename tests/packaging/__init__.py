"""The contents and the installation of the wheel."""
