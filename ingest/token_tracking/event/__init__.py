"""What a usage event is: its fields, rules, labels and keys; imports no driver."""
