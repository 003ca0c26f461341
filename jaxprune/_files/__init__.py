"""Every format that params are read from and written to."""
