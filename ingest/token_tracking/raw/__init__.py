"""The raw schema: released versions, procedures by subject (applied in name order), roles."""
