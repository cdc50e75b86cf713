"""Where the optimizer and its masks are right, against double precision and others."""
