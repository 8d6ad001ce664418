"""What tokens cost: dated prices, where they come from, and which one is in force."""
