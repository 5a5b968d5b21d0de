"""A frozen encoder's view of every picture; from here on there is torch."""
