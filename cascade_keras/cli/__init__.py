"""The programs: flags, wiring and printing."""
