"""Methods that score inputs which were moved or transformed."""
