"""Engines that run the work: in this process, in worker processes, or on Ray; and interrupts."""
