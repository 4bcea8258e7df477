"""What a walk leaves: its schema, its records, its dataset."""
