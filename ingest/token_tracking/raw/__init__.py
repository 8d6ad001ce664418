"""The raw schema: released versions, procedures by subject (run in order of name), roles."""
