"""Files, interrupts, memory, progress: what geoflow asks of the operating system."""
