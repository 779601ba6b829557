"""Read what a run or study wrote."""
