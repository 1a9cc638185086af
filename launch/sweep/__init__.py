"""Many runs: the jobs of a multirun, their report, the search."""
