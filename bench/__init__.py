"""Speed, measured as ratios and differences in one run against what a user would use instead."""
