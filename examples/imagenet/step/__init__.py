"""One update: as a pure function, on all devices, and what to look at if it fails."""
