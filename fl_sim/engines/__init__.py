"""Where work runs: in-process, on Ray, over processes; and how it is interrupted."""
